"""In-context learning (Brown et al. 2020): training rows stand before the text as solved examples; nothing is tuned.

A demonstration is the task's own manual template with the row's texts and, for {mask}, its label word, or, for
{target}, its target.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bbt.backend import Backend, Encoded, GenerationBackend, Row, Segment, TargetBackend, require
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator
from bbt.files import write_atomically
from bbt.methods.base import SelectingMethod
from bbt.runs.estimate import Gauge, PlannedQueries
from bbt.runs.observer import Progress
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorers import scorer_of
from bbt.scoring.targets import TargetScorer, TargetScores
from bbt.settings import by_likelihood
from bbt.tasks import Example, GenerationTask, Task
from bbt.tasks.data import alternating
from bbt.types import Prompts, RowScores

LOG = logging.getLogger(__name__)
FILE = "demonstrations.json"


class InContext(SelectingMethod):
    """In-context learning with demonstrations in several random orders, of which dev picks one: orders matter (Lu et
    al. 2022, arXiv 2104.08786). BBT's baseline is a single order of up to 32 rows (BBT section 4.1)."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    n_orders: int = Field(8, ge=1)
    """How many random orders of the training rows are tried, one dev query each."""
    n_demonstrations: int | None = Field(None, ge=1)
    """The most rows that are shown, one on each line (none: all that fit)."""

    def plan(self, references: bool) -> PlannedQueries:
        """The dev queries, one an order; the best order is tested."""
        return PlannedQueries(0, self.n_orders, 0, 1, int(references), judged_references=False, fits_on_train=False)

    def wordings(self, task: Task, train: Sequence[Example], seed: int, gauge: Gauge) -> Sequence[Task]:
        """The task after the demonstrations in each order."""
        return [in_words(gauge, task, order) for order in self._orders(train, seed)]

    def _orders(self, train: Sequence[Example], seed: int) -> Iterator[list[Example]]:
        """Yield the demonstrations in each order."""
        for i in range(self.n_orders):
            yield alternating(train, seed * self.n_orders + i)[: self.n_demonstrations]

    def train(self, experiment: Experiment) -> Trained:
        """Judge each order on dev, one dev query each. There is no train query."""
        e, best = experiment, None
        e.observer.started(self.n_orders, "order")
        for i, order in enumerate(self._orders(e.split.train, e.seed)):
            who, shown = f"order {i + 1}", demonstrated(e.backend, e.task, order)
            if isinstance(shown, InContextGenerator):
                verdict = e.judge_generator(shown, who)
            else:
                verdict = e.judge(shown, who, held_in=False)
            if best is None or verdict.better_than(best[1].verdict, self.selection.by):
                best = shown.task, Trained(shown, who, verdict, 0, 0, {"manual": e.prompted(e.no_prompt)})
            e.observer.progressed(Progress(i + 1, verdict.loss, best[1].verdict.metric))
        assert best is not None
        _tell_of_the_left_out(e, best[0])
        return best[1]

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier | Generator:
        """Load the demonstrations in their order."""
        saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
        examples = [Example(**{**row, "targets": tuple(row.get("targets", ()))}) for row in saved]
        return demonstrated(backend, task, examples)


@dataclass(frozen=True)
class InContextClassifier:
    """A classifier that is the manual prompt after demonstrations."""

    backend: Backend
    """The model that scores."""
    task: "DemonstratedTask"
    """The task whose rows begin with the demonstrations."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the examples; each row is shown the demonstrations for which it leaves room."""
        scorer = scorer_of(self.backend, self.task, examples, ledger)
        return np.asarray(scorer.scores(_no_prompt(self.backend))[0])

    def save(self, folder: Path) -> None:
        """Write the demonstrations as `demonstrations.json`, in their order."""
        _save(self.task, folder)


@dataclass(frozen=True)
class InContextGenerator:
    """A generator that is the manual prompt after demonstrations."""

    backend: Backend
    """The model that writes."""
    task: "DemonstratedGenerationTask"
    """The task whose rows begin with the demonstrations."""

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """Write a text for each example."""
        return self._scorer(examples, ledger).texts(_no_prompt(self.backend))

    def target_scores(self, examples: Sequence[Example], ledger: Ledger) -> TargetScores | None:
        """Compute how likely the examples' targets are."""
        return self._scorer(examples, ledger).target_scores(_no_prompt(self.backend))

    def save(self, folder: Path) -> None:
        """Write the demonstrations as `demonstrations.json`, in their order."""
        _save(self.task, folder)

    def _scorer(self, examples: Sequence[Example], ledger: Ledger) -> TargetScorer:
        return TargetScorer(self.backend, self.task, examples, ledger)


@dataclass(frozen=True)
class DemonstratedTask(Task):
    """A task whose rows begin with as many of the `demonstrations`, from the first on, as the model has room for.

    Only whole demonstrations are left out, never a part of one, and no text is cut for their sake.
    """

    demonstrations: tuple[Example, ...] = field(kw_only=True)
    """The solved examples, in the order in which they are shown."""
    lines: tuple[str, ...] = field(kw_only=True)
    """The demonstrations as they are shown."""
    max_length: int = field(kw_only=True)
    """The most tokens of a row, by which as many demonstrations are shown as fit."""
    encode: Callable[[Row], Encoded] = field(kw_only=True)
    """A function that encodes one row as the model would, or measures it."""

    def rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """The examples as segments, after their demonstrations as literal text."""
        rows = super().rows(examples, n_prompt_tokens)
        return [self._after(self._number_shown(row), row) for row in rows]

    def n_left_out(self, examples: Sequence[Example]) -> int:
        """The number of demonstrations that these rows have no room for, all rows together."""
        shown = sum(self._number_shown(row) for row in super().rows(examples, 0))
        return len(self.demonstrations) * len(examples) - shown

    def _number_shown(self, row: Row) -> int:
        """The number of demonstrations that the row has room for. It is found by the sum of their sizes and then tried,
        since where two texts meet there may be a token more or less."""
        room = self.max_length - self.encode(row).n_tokens
        n = sum(size <= room for size in self._sizes)
        while n and self.encode(self._after(n, row, "text")).n_truncated:
            n -= 1
        return n

    def _after(self, n: int, row: Row, kind: Literal["literal", "text"] = "literal") -> Row:
        """The row after the first n demonstrations. As `text` they are cut where they do not fit, and that is
        counted."""
        return (Segment(kind, "".join(line + "\n" for line in self.lines[:n])), *row) if n else row

    @cached_property
    def _sizes(self) -> list[int]:
        """The tokens that the first 1, 2, ... demonstrations add to the shortest row, up to where they no longer
        fit."""
        row = min(super().rows(self.demonstrations, 0), key=lambda row: sum(len(segment.text) for segment in row))
        sizes: list[int] = []
        for n in range(1, len(self.demonstrations) + 1):
            encoded = self.encode(self._after(n, row, "text"))
            if encoded.n_truncated:
                break
            sizes.append(encoded.n_tokens - self.encode(row).n_tokens)
        return sizes


@dataclass(frozen=True)
class DemonstratedGenerationTask(DemonstratedTask, GenerationTask):
    """A task whose answer is a text, after demonstrations."""


def demonstrated(backend: Backend, task: Task, order: Sequence[Example]) -> InContextClassifier | InContextGenerator:
    """Make what shows demonstrations in this order: a classifier, or a generator where the task's answer is a text."""
    if isinstance(task, GenerationTask):
        writer, room = require(backend, GenerationBackend, f"task {task.name}"), task.decoding.max_new_tokens
        own = _own(task, order, backend.info.max_length, lambda row: writer.encode_contexts([row], room))
        return InContextGenerator(backend, DemonstratedGenerationTask(**vars(task), **own))
    words = task.label_words
    if by_likelihood(task.scored_by):
        told = require(backend, TargetBackend, f"task.scored_by: {task.scored_by}")
        own = _own(task, order, backend.info.max_length, _with_longest_label(task, told.encode_pairs))
    else:
        own = _own(task, order, backend.info.max_length, lambda row: backend.encode([row], words))
    return InContextClassifier(backend, DemonstratedTask(**vars(task), **own))


def in_words(gauge: Gauge, task: Task, order: Sequence[Example]) -> DemonstratedTask:
    """Make the task of `demonstrated`, for a model that is only measured."""
    if isinstance(task, GenerationTask):
        room = task.decoding.max_new_tokens
        own = _own(task, order, gauge.max_length, lambda row: gauge.encode_contexts([row], room))
        return DemonstratedGenerationTask(**vars(task), **own)
    if by_likelihood(task.scored_by):
        own = _own(task, order, gauge.max_length, _with_longest_label(task, gauge.encode_pairs))
    else:
        own = _own(task, order, gauge.max_length, lambda row: gauge.encode([row]))
    return DemonstratedTask(**vars(task), **own)


def _with_longest_label(task: Task, encode: Callable[[Sequence[Row]], Encoded]) -> Callable[[Row], Encoded]:
    """Make a function that encodes a row with the label of most tokens, for which there must be room."""
    labelled = task.labelled_rows([Example("", 0)], 0)
    longest = max(range(len(labelled)), key=lambda label: encode([labelled[label]]).n_tokens)
    return lambda row: encode([task.labelled(row, longest)])


def _own(task: Task, order: Sequence[Example], max_length: int, encode: Callable[[Row], Encoded]) -> dict[str, Any]:
    """What a task has of its own where it shows demonstrations."""
    lines = tuple(task.solved(example) for example in order)
    return {"demonstrations": tuple(order), "lines": lines, "max_length": max_length, "encode": encode}


def _no_prompt(backend: Backend) -> Prompts:
    """The manual prompt, as a population of one."""
    return np.zeros((1, 0, backend.info.hidden_size), np.float32)


def _save(task: DemonstratedTask, folder: Path) -> None:
    rows = [asdict(example) for example in task.demonstrations]
    write_atomically(folder / FILE, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _tell_of_the_left_out(experiment: Experiment, task: DemonstratedTask) -> None:
    """Tell the log and the user how many demonstrations had no room."""
    dev = experiment.split.dev
    n_left_out, n = task.n_left_out(dev), len(task.demonstrations)
    experiment.log.append({"event": "demonstrations", "given": n, "left_out_per_dev_row": n_left_out / len(dev)})
    if n_left_out:
        shown = n - n_left_out / len(dev)
        LOG.warning("%.1f of %d demonstrations fit into the model before a dev row.", shown, n)
