"""A `Task`: template, label words and metrics, for one kind of language model."""

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
    """What is asked of the model: K label words, in the order of the label indices.

    `metrics[0]` selects prompts; the others are reported beside it. `loss` is what a search minimises unless told
    otherwise. `scored_by` says what a label's score is: `label_words`, the logit of its word, which is one token;
    `likelihood`, the log-likelihood of its word or words, of as many tokens as they have (causal LMs);
    `mean_likelihood`, the same a token, so that long labels have no disadvantage.

    Raises:
        ConfigError: label words and names differ in number or repeat, or a metric is unknown.
    """

    name: str
    template: Template
    label_names: tuple[str, ...]
    label_words: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    loss: str = "cross_entropy"
    scored_by: ScoredBy = "label_words"

    def __post_init__(self) -> None:
        if len(self.label_words) != len(self.label_names):
            raise ConfigError(
                f"task {self.name}: {len(self.label_words)} label words {list(self.label_words)} for "
                f"{len(self.label_names)} labels {list(self.label_names)}; give one word a label, in order."
            )
        if len(set(self.label_words)) != len(self.label_words):
            raise ConfigError(f"task {self.name}: label words repeat: {list(self.label_words)}.")
        for metric in self.metrics:
            load_metric(metric)

    def at_start(self) -> "Task":
        """The task with the soft prompt at the very start of its rows."""
        return replace(self, template=self.template.at_start())

    def rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """Examples as segments for `Backend.encode`."""
        return [self.template.render(e.text, e.text_pair, n_prompt_tokens) for e in examples]

    def labelled_rows(self, examples: Sequence[Example], n_prompt_tokens: int) -> list[Row]:
        """B * K rows: each example with the words of each label in the mask's place, in label order."""
        targets = [Segment("target", word.strip()) for word in self.label_words]
        return [
            tuple(target if segment.kind == "mask" else segment for segment in row)
            for row in self.rows(examples, n_prompt_tokens)
            for target in targets
        ]

    def metric(self, labels: Labels, predictions: NDArray[np.int64]) -> float:
        """The metric that selects prompts, in [0, 1]."""
        return load_metric(self.metrics[0])(labels, predictions)

    def evaluate(self, labels: Labels, predictions: NDArray[np.int64]) -> dict[str, float]:
        """Every metric of the task by name."""
        return {name: load_metric(name)(labels, predictions) for name in self.metrics}


def labels_of(examples: Sequence[Example]) -> Labels:
    """(B,) label indices."""
    return np.array([example.label for example in examples], dtype=np.int64)
