"""An estimate of what a run would cost, made before its backend is called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from bbt.backend import Row
from bbt.settings import (
    CalibrationKind,
    ModelConfig,
    PriceConfig,
)
from bbt.tasks import Example, Split, Task


@dataclass(frozen=True)
class PlannedQueries:
    """How many prompts a run will score, at most, and on which rows. On the rows of other tests
    (`evaluation.also_test`) it scores one."""

    train: int
    """Prompts scored on the train rows."""
    dev: int
    """Prompts scored on the dev rows."""
    manual_dev: int
    """Prompts without prompt tokens scored on the dev rows: the manual prompt."""
    test: int
    """Prompts scored on the test rows."""
    manual_test: int
    """Prompts without prompt tokens scored on the test rows."""
    n_prompt_tokens: int = 0
    """T, the number of prompt tokens."""
    intrinsic_dim: int | None = None
    """d, where a backend that can hold the prompt space is sent z instead of prompts (none: prompts are sent)."""
    in_words: bool = False
    """Whether prompts are words, and travel as token ids."""
    n_words: int = 0
    """The most words of which a row may have scores, where they are more than the label words."""
    judged_references: bool = True
    """Whether what is tested beside the outcome was judged before, so that its class biases are known."""


@dataclass(frozen=True)
class Wire:
    """How many bytes one query is on the wire."""

    up: float
    """Bytes sent."""
    down: float
    """Bytes received."""


class Gauge(Protocol):
    """A measure of a backend's rows that does not call the backend."""

    @property
    def kind(self) -> str:
        """The language model's kind: masked, causal or encoder-decoder."""

    @property
    def counted(self) -> str:
        """How tokens are counted, in words for the table."""

    def tokens(self, rows: Sequence[Row]) -> int:
        """The number of tokens of these rows, their prompt tokens included."""

    def wire(self, rows: Sequence[Row], n_labels: int) -> Wire:
        """How many bytes one query on these rows is, with `n_labels` scores a row."""


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, at most."""

    train_queries: int
    """Candidates scored on the whole train set."""
    dev_queries: int
    """Prompts scored on the whole dev set."""
    tested_prompts: int
    """Prompts scored on the whole test set."""
    examples: int
    """Rows scored, all queries and tests together."""
    tokens_up: int
    """Tokens of those rows, prompt tokens included."""
    tokens_down: int
    """Tokens generated: one a row that is scored, and those of generated texts."""
    bytes_up: int
    """Bytes sent, about."""
    bytes_down: int
    """Bytes received, about."""
    price: float
    """Money, in the currency of the config's `price`."""
    seconds: float | None
    """Seconds at the speed of the last run on the same model (none: there was no such run)."""
    counted: str
    """How tokens were counted, in words."""


def estimated(
    price: PriceConfig,
    plan: PlannedQueries,
    task: Task,
    split: Split,
    others: Sequence[Sequence[Example]],
    gauge: Gauge,
    speed: float | None,
    calibration: CalibrationKind = "none",
    content_free: Sequence[Example] = (),
) -> Estimate:
    """The plan's cost on these rows and on those of `others`; `speed` in examples a second, if it is known. Fitted
    biases are read off train and dev rows of every judged prompt, content-free ones off rows of every prompt. Where
    labels may be read from many words, the manual prompt tries them, and every tested prompt gets its readout."""
    n_tokens = plan.n_prompt_tokens
    fitted = int(calibration == "fitted")
    unjudged = 0 if plan.judged_references or calibration in ("none", "batch") else 1
    free = content_free if calibration == "content-free" else ()
    read = int(calibration == "fitted" and plan.n_words > 0)
    labelled = [*split.train, *split.dev, *free]
    parts: list[tuple[int, Sequence[Example], int]] = [
        (plan.train, split.train, n_tokens),
        (plan.dev, split.dev, n_tokens),
        (plan.manual_dev, split.dev, 0),
        (fitted * plan.dev, split.train, n_tokens),
        (fitted * plan.manual_dev, split.train, 0),
        (plan.train + plan.dev, free, n_tokens),
        (plan.manual_dev, free, 0),
        (unjudged * max(plan.test - 1, 0), labelled, n_tokens),
        (unjudged * plan.manual_test, labelled, 0),
        (read * plan.test, [*split.train, *split.dev], n_tokens),
        (read * (1 + plan.manual_test), [*split.train, *split.dev], 0),
        (plan.test, split.test, n_tokens),
        (plan.manual_test, split.test, 0),
        *((1, rows, n_tokens if plan.test else 0) for rows in others),
    ]
    examples = sum(n * len(rows) for n, rows, _ in parts)
    up = sum(n * gauge.tokens(task.rows(rows, t)) for n, rows, t in parts if n and rows)
    n_scores = max(read * plan.n_words, len(task.label_words))
    wires = [(n, gauge.wire(task.rows(rows, t), n_scores)) for n, rows, t in parts if n and rows]
    return Estimate(
        plan.train,
        plan.dev + plan.manual_dev + read * (1 + plan.test + plan.manual_test),
        plan.test + plan.manual_test,
        examples,
        up,
        examples,
        round(sum(n * wire.up for n, wire in wires)),
        round(sum(n * wire.down for n, wire in wires)),
        price.of(up, examples),
        examples / speed if speed else None,
        gauge.counted,
    )


def speed_of_last(runs: Path, model: ModelConfig) -> float | None:
    """Examples a second of the latest finished run under `runs` on the same model, backend and options."""
    for path in sorted(runs.rglob("result.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        if not (path.parent / "config.yaml").is_file():
            continue
        its = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))["model"]
        cost = json.loads(path.read_text(encoding="utf-8"))["cost"]
        if its == model.model_dump(mode="json") and cost["seconds"]:
            return float(cost["examples"] / cost["seconds"])
    return None
