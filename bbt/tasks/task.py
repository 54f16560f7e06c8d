"""A `Task` is a template, label words and metrics, for one kind of language model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bbt.backend import Row, Segment
from bbt.errors import ConfigError
from bbt.settings import ScoredBy
from bbt.tasks.examples import Example
from bbt.tasks.metrics import load_metric
from bbt.tasks.template import Template
from bbt.types import Labels


@dataclass(frozen=True)
class Task:
    """What is asked of the model, with K labels.

    Raises:
        ConfigError: label words and names differ in number or repeat, or a metric is unknown.
    """

    name: str
    """The task's name."""
    template: Template
    """Where the prompt, the texts and the mask stand."""
    label_names: tuple[str, ...]
    """What the labels are called (K,), in the order of the label indices."""
    label_words: tuple[str, ...]
    """The word of each label (K,), in the order of the label indices."""
    metrics: tuple[str, ...] = ("accuracy",)
    """The names of the metrics; the first one selects prompts, the others are reported beside it."""
    loss: str = "cross_entropy"
    """The loss that a search minimises unless it is told otherwise."""
    scored_by: ScoredBy = "label_words"
    """What a label's score is. `label_words` is the logit of its word, which is one token; `likelihood` is the
    log-likelihood of its word or words, of as many tokens as they have (masked LMs have none); `mean_likelihood` is the
    same divided by the number of tokens, so that long labels have no disadvantage."""
    words: tuple[str, ...] = ()
    """Further words, whose scores come behind those of the label words: M words in all (`bbt.scoring.readout`)."""

    def __post_init__(self) -> None:
        if len(self.label_words) != len(self.label_names):
            raise ConfigError(
                f"task {self.name}: {len(self.label_words)} label words {list(self.label_words)} for "
                f"{len(self.label_names)} labels {list(self.label_names)}; give one word a label, in order."
            )
        for what, given in (("words", self.label_words), ("names", self.label_names)):
            if len(set(given)) != len(given):
                raise ConfigError(f"task {self.name}: label {what} repeat: {list(given)}.")
        for metric in self.metrics:
            load_metric(metric)

    def at_start(self) -> "Task":
        """Return the task with the soft prompt at the very start of its rows."""
        return replace(self, template=self.template.at_start())

    @property
    def scored_words(self) -> tuple[str, ...]:
        """The words (M,) that a backend scores: the label words, and then the further ones."""
        return self.label_words + self.words

    def rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """Render examples as segments for `Backend.encode`."""
        return [self.template.render(e.text, e.text_pair, n_prompt_tokens) for e in examples]

    def solved(self, example: Example) -> str:
        """Return an example's row with its answer: the label word in the mask's place, or its target."""
        (row,) = self.rows([example], 0)
        return "".join(
            self.label_words[example.label] if segment.kind == "mask" else segment.text for segment in row
        ).removesuffix("\n")

    def labelled_rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """Render B * K rows: each example with the words of each label in the mask's place, in label order."""
        labels = range(len(self.label_words))
        return [self.labelled(row, label) for row in self.rows(examples, n_prompt_tokens) for label in labels]

    def labelled(self, row: Row, label: int) -> Row:
        """Return the row with the label's words, as a target, in the mask's place."""
        target = Segment("target", self.label_words[label].strip())
        return tuple(target if segment.kind == "mask" else segment for segment in row)

    def metric(self, labels: Labels, predictions: NDArray[np.int64]) -> float:
        """Compute the metric that selects prompts, in [0, 1]."""
        return load_metric(self.metrics[0])(labels, predictions)

    def evaluate(self, labels: Labels, predictions: NDArray[np.int64]) -> dict[str, float]:
        """Compute every metric of the task by name."""
        return {name: load_metric(name)(labels, predictions) for name in self.metrics}


def labels_of(examples: Sequence[Example]) -> Labels:
    """Collect the label indices (B,) of examples."""
    return np.array([example.label for example in examples], dtype=np.int64)
