"""An estimate of what a run would cost, made before its backend is called: what is planned, how it is measured, and
what comes of it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Protocol

import yaml

from bbt.backend import Row
from bbt.settings import ModelConfig, PriceConfig


@dataclass(frozen=True)
class GradientSteps:
    """The steps of a training on B train rows."""

    steps: int
    """The number of steps."""
    batch_size: int
    """The most rows of a batch; the last batch of an epoch has what is left."""
    batches: int
    """The number of batches of a step."""

    def sizes(self, n_rows: int) -> list[int]:
        """The numbers of rows of all batches, one after the other, where there are `n_rows` train rows."""
        epoch = [min(self.batch_size, n_rows - start) for start in range(0, n_rows, self.batch_size)]
        return list(islice(cycle(epoch), self.steps * self.batches))


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
    training: GradientSteps | None = None
    """The gradient steps on train rows, beside the queries (none: there are no gradients)."""
    fits_on_train: bool = True
    """Whether fitted class biases take the scores of the train rows beside those of the dev rows."""


@dataclass(frozen=True)
class Wire:
    """How many bytes one query is on the wire."""

    up: float
    """Bytes sent."""
    down: float
    """Bytes received."""


@dataclass(frozen=True)
class Measured:
    """The sizes of rows as a backend would encode them."""

    n_examples: int
    """The number of rows B."""
    n_tokens: int
    """The number of tokens of all rows with their targets, prompt tokens included."""
    n_truncated: int
    """The number of rows whose text would be cut."""
    n_prompt_tokens: int
    """T, the number of prompt tokens of each row."""
    n_asked: int
    """The number of places that a token is foretold at: one a row, or one for each token of its target."""
    n_asked_tokens: int
    """The number of tokens that stand left of each such place, over all of them together."""


class Gauge(Protocol):
    """A measure of a backend's rows that does not call the backend. It measures what the methods of the same names
    encode."""

    @property
    def kind(self) -> str:
        """The language model's kind: masked, causal or encoder-decoder."""

    @property
    def max_length(self) -> int:
        """The most tokens that a row may have, prompt tokens included."""

    @property
    def tells_likelihoods(self) -> bool:
        """Whether the backend tells how likely a target is; an API of text alone does not."""

    @property
    def counted(self) -> str:
        """How tokens are counted, in words for the table."""

    def encode(self, rows: Sequence[Row]) -> Measured:
        """Measure rows whose label words are scored."""

    def encode_pairs(self, rows: Sequence[Row]) -> Measured:
        """Measure rows whose targets are scored."""

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> Measured:
        """Measure rows that are written on."""

    def scores_wire(self, rows: Measured, n_scores: int, searched: bool) -> Wire:
        """How many bytes one query on these rows is, with `n_scores` scores a row. Whether it is `searched` says
        whether the prompt is a point of the prompt space, and may travel as one."""

    def texts_wire(self, rows: Measured, max_new_tokens: int) -> Wire:
        """How many bytes it is at most to have a text written after each of these rows under one prompt."""


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, at most."""

    train_queries: int
    """Candidates scored on the whole train set; of a training, how often its steps go over it."""
    dev_queries: int
    """Prompts scored on the whole dev set."""
    tested_prompts: int
    """Prompts scored on the whole test set."""
    gradient_steps: int
    """Steps of a training."""
    examples: int
    """Rows scored, all queries, steps and tests together."""
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


@dataclass
class Costs:
    """Costs that are added up, of which an `Estimate` is made."""

    train_queries: int = 0
    """How often the steps of a training go over its rows."""
    gradient_steps: int = 0
    """The steps of a training."""
    examples: int = 0
    """The rows scored or written on so far."""
    tokens_up: int = 0
    """Their tokens."""
    tokens_down: int = 0
    """Tokens generated so far."""
    bytes_up: float = 0.0
    """Bytes sent so far."""
    bytes_down: float = 0.0
    """Bytes received so far."""

    def add(self, n: int, rows: Measured, wire: Wire, tokens_a_row: int) -> None:
        """Add n queries on rows, each of which costs `wire` and gives `tokens_a_row` tokens a row."""
        self.examples += n * rows.n_examples
        self.tokens_up += n * rows.n_tokens
        self.tokens_down += n * rows.n_examples * tokens_a_row
        self.bytes_up += n * wire.up
        self.bytes_down += n * wire.down

    def train(self, steps: GradientSteps, rows: Measured) -> None:
        """Add the steps of a training on these rows, as `bbt.baselines.training` counts them."""
        sizes = steps.sizes(rows.n_examples)
        self.examples += sum(sizes)
        self.tokens_up += sum(round(size * rows.n_tokens / rows.n_examples) for size in sizes)
        self.train_queries += sum(sizes) // max(1, rows.n_examples)
        self.gradient_steps += steps.steps

    def estimate(
        self, plan: PlannedQueries, n_read: int, price: PriceConfig, gauge: Gauge, speed: float | None
    ) -> Estimate:
        """Make the estimate of a plan whose costs these are; `n_read` dev queries beside the plan's read words."""
        return Estimate(
            plan.train + self.train_queries,
            plan.dev + plan.manual_dev + n_read,
            plan.test + plan.manual_test,
            self.gradient_steps,
            self.examples,
            self.tokens_up,
            self.tokens_down,
            round(self.bytes_up),
            round(self.bytes_down),
            price.of(self.tokens_up, self.tokens_down),
            self.examples / speed if speed else None,
            gauge.counted,
        )


def largest(measured: Iterable[Measured]) -> Measured:
    """The rows of most tokens."""
    return max(measured, key=lambda rows: rows.n_tokens)


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
