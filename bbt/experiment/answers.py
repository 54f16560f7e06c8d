"""What a classifier says of examples, by the labels' names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbt.scoring.losses import log_softmax, predicted
from bbt.tasks import Example
from bbt.types import Labels, RowScores


@dataclass(frozen=True)
class Answers:
    """What a classifier says of B examples."""

    labels: Labels
    """(B,) labels, -1 where all K scores are equal."""
    probabilities: NDArray[np.float64]
    """(B, K) probabilities of the label words."""

    @classmethod
    def of(cls, scores: RowScores) -> "Answers":
        """The answers that scores (B, K) stand for."""
        return cls(predicted(scores), np.exp(log_softmax(scores)))

    def named(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The label and the probabilities of each example by the K `names`; the label is None where it is -1."""
        return [
            {
                "label": names[label] if label >= 0 else None,
                "probabilities": {name: float(p) for name, p in zip(names, row, strict=True)},
            }
            for label, row in zip(self.labels, self.probabilities, strict=True)
        ]

    def beside(self, examples: Sequence[Example], names: Sequence[str]) -> list[dict[str, Any]]:
        """A record for each example: its texts, its gold label's name, and the answer."""
        records = []
        for example, answer in zip(examples, self.named(names), strict=True):
            pair = {"text_pair": example.text_pair} if example.text_pair else {}
            records.append({"text": example.text, **pair, "gold": names[example.label], **answer})
        return records
