"""In-context learning (Brown et al. 2020): training rows stand before the text as solved examples; nothing is tuned.

A demonstration is the task's own manual template with the row's texts and, for {mask}, its label word.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from bbt.backend import Backend, Encoded, Row, Segment
from bbt.draws import stable_uniform
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.files import write_atomically
from bbt.methods.base import SelectingMethod
from bbt.runs.observer import Progress
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task
from bbt.types import RowScores

LOG = logging.getLogger(__name__)
FILE = "demonstrations.json"


class InContext(SelectingMethod):
    """In-context learning with demonstrations in several random orders, of which dev picks one: orders matter (Lu et
    al. 2022, arXiv 2104.08786). BBT's baseline is a single order of up to 32 rows (BBT section 4.1)."""

    n_orders: int = Field(8, ge=1)
    """How many random orders of the training rows are tried, one dev query each."""
    n_demonstrations: int | None = Field(None, ge=1)
    """The most rows that are shown, one on each line (none: all that fit)."""

    def train(self, experiment: Experiment) -> Trained:
        """Judge each order on dev, one dev query each. There is no train query."""
        e, best = experiment, None
        e.observer.started(self.n_orders, "order")
        for i in range(self.n_orders):
            order = alternating(e.split.train, e.seed * self.n_orders + i)[: self.n_demonstrations]
            classifier = demonstrated(e.backend, e.task, order)
            verdict = e.judge(classifier, f"order {i + 1}", held_in=False)
            if best is None or verdict.better_than(best[1].verdict, self.selection.by):
                best = classifier, Trained(classifier, f"order {i + 1}", verdict, 0, 0, {"manual": e.manual})
            e.observer.progressed(Progress(i + 1, verdict.loss, best[1].verdict.metric))
        assert best is not None
        _tell_of_the_left_out(e, best[0])
        return best[1]

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the demonstrations in their order."""
        saved = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return demonstrated(backend, task, [Example(**row) for row in saved])


@dataclass(frozen=True)
class InContextClassifier:
    """A classifier that is the manual prompt after demonstrations."""

    task: "DemonstratedTask"
    """The task whose rows begin with the demonstrations."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the examples; each row is shown the demonstrations for which it leaves room."""
        backend = self.task.backend
        no_prompt = np.zeros((1, 0, backend.info.hidden_size), np.float32)
        return np.asarray(Scorer(backend, self.task, examples, ledger).scores(no_prompt)[0])

    def save(self, folder: Path) -> None:
        """Write the demonstrations as `demonstrations.json`, in their order."""
        rows = [asdict(example) for example in self.task.demonstrations]
        write_atomically(folder / FILE, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class DemonstratedTask(Task):
    """A task whose rows begin with as many of the `demonstrations`, from the first on, as the model has room for.

    Only whole demonstrations are left out, never a part of one, and no text is cut for their sake.
    """

    demonstrations: tuple[Example, ...] = field(kw_only=True)
    """The solved examples, in the order in which they are shown."""
    backend: Backend = field(kw_only=True)
    """The model, whose length says how many demonstrations fit."""

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
        room = self.backend.info.max_length - self._encoded(row).n_tokens
        n = sum(size <= room for size in self._sizes)
        while n and self._encoded(self._after(n, row, "text")).n_truncated:
            n -= 1
        return n

    def _after(self, n: int, row: Row, kind: Literal["literal", "text"] = "literal") -> Row:
        """The row after the first n demonstrations. As `text` they are cut where they do not fit, and that is
        counted."""
        lines = "".join(self._solved(example) + "\n" for example in self.demonstrations[:n])
        return (Segment(kind, lines), *row) if n else row

    def _solved(self, example: Example) -> str:
        (row,) = super().rows([example], 0)
        word = self.label_words[example.label]
        return "".join(word if segment.kind == "mask" else segment.text for segment in row)

    @cached_property
    def _sizes(self) -> list[int]:
        """The tokens that the first 1, 2, ... demonstrations add to the shortest row, up to where they no longer
        fit."""
        row = min(super().rows(self.demonstrations, 0), key=lambda row: sum(len(segment.text) for segment in row))
        sizes: list[int] = []
        for n in range(1, len(self.demonstrations) + 1):
            encoded = self._encoded(self._after(n, row, "text"))
            if encoded.n_truncated:
                break
            sizes.append(encoded.n_tokens - self._encoded(row).n_tokens)
        return sizes

    def _encoded(self, row: Row) -> Encoded:
        return self.backend.encode([row], self.label_words)


def demonstrated(backend: Backend, task: Task, order: Sequence[Example]) -> InContextClassifier:
    """Make a classifier that shows demonstrations in this order."""
    own: dict[str, Any] = {"demonstrations": tuple(order), "backend": backend}
    return InContextClassifier(DemonstratedTask(**vars(task), **own))


def alternating(examples: Sequence[Example], seed: int) -> list[Example]:
    """A random order in which the classes take turns, so that its beginning is balanced too."""
    shuffled = [examples[i] for i in stable_uniform(seed, len(examples)).argsort(kind="stable")]
    seen: Counter[int] = Counter()
    turns = []
    for example in shuffled:
        turns.append((seen[example.label], example))
        seen[example.label] += 1
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])]


def _tell_of_the_left_out(experiment: Experiment, classifier: InContextClassifier) -> None:
    """Tell the log and the user how many demonstrations had no room."""
    task, dev = classifier.task, experiment.split.dev
    n_left_out, n = task.n_left_out(dev), len(task.demonstrations)
    experiment.log.append({"event": "demonstrations", "given": n, "left_out_per_dev_row": n_left_out / len(dev)})
    if n_left_out:
        shown = n - n_left_out / len(dev)
        LOG.warning("%.1f of %d demonstrations fit into the model before a dev row.", shown, n)
