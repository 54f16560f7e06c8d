"""Dev judges a training now and then, and its best state is kept in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.experiment.generators import Generator
from bbt.scoring.judge import Verdict

State = TypeVar("State")


@dataclass(frozen=True)
class Best(Generic[State]):
    """The best state of a training so far."""

    who: str
    """Which state it was, for the tables."""
    verdict: Verdict
    """How dev has judged it."""
    train_queries: int
    """The train queries that had been spent by then."""
    state: State
    """A copy of the state."""


class Selection(Generic[State]):
    """A keeper of the state that dev judges best, by `by`: see `Verdict.better_than`."""

    def __init__(self, experiment: Experiment, by: str) -> None:
        self._experiment, self._by = experiment, by
        self._best: Best[State] | None = None

    @property
    def best(self) -> Best[State]:
        """The best state; there has been at least one check."""
        assert self._best is not None
        return self._best

    def check(self, step: int, trained: Classifier | Generator, state: Callable[[], State]) -> None:
        """Judge a state on dev; scores that are not numbers are never better. `state` makes a copy, and is asked for
        one if the state is better."""
        e, who = self._experiment, f"step {step}"
        verdict = e.judge_generator(trained, who) if isinstance(trained, Generator) else e.judge(trained, who)
        if self._best is None or verdict.better_than(self._best.verdict, self._by):
            self._best = Best(who, verdict, e.ledger.train_queries, state())
