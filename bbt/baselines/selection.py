"""Dev judges a training now and then; its best state is kept in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.scoring.judge import Verdict

State = TypeVar("State")


@dataclass(frozen=True)
class Best(Generic[State]):
    """The best state so far: who it was, how dev judged it, after how many train queries."""

    who: str
    verdict: Verdict
    train_queries: int
    state: State


class Selection(Generic[State]):
    """Keeps what dev judges best, by `by`: see `Verdict.better_than`."""

    def __init__(self, experiment: Experiment, by: str) -> None:
        self._experiment, self._by = experiment, by
        self._best: Best[State] | None = None

    @property
    def best(self) -> Best[State]:
        """The best of at least one check."""
        assert self._best is not None
        return self._best

    def check(self, step: int, classifier: Classifier, state: Callable[[], State]) -> None:
        """Judge on dev; scores that are not numbers are never better. `state` is a copy, asked for if it is."""
        e, who = self._experiment, f"step {step}"
        verdict = e.judge(classifier, who)
        if self._best is None or verdict.better_than(self._best.verdict, self._by):
            self._best = Best(who, verdict, e.ledger.train_queries, state())
