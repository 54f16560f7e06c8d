"""Metrics by name, as scikit-learn has them: (gold labels (B,), predictions (B,)) -> float in [0, 1]; and what they
hide.

A prediction of -1 is none: the row is wrong, and -1 is no class.
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from bbt.names import Table, resolved
from bbt.types import Labels

Metric: TypeAlias = Callable[[Labels, Labels], float]


def accuracy(labels: Labels, predictions: Labels) -> float:
    """Share of examples predicted right."""
    return float(np.mean(labels == predictions))  # scikit-learn's figure, without the second that it takes to import


def f1(labels: Labels, predictions: Labels) -> float:
    """F1 of class 1, as the paper reports for MRPC; 0 where class 1 is never predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=[1], average="macro", zero_division=0))


def macro_f1(labels: Labels, predictions: Labels) -> float:
    """Unweighted mean of the F1 of the classes that occur, in the labels or the predictions."""
    from sklearn.metrics import f1_score

    classes = np.setdiff1d(np.union1d(labels, predictions), [-1])
    return float(f1_score(labels, predictions, labels=classes, average="macro", zero_division=0))


METRICS: Table = {
    "accuracy": ("bbt.tasks.metrics:accuracy", "share of rows that are predicted right"),
    "f1": ("bbt.tasks.metrics:f1", "F1 of class 1"),
    "macro_f1": ("bbt.tasks.metrics:macro_f1", "unweighted mean of the classes' F1"),
}


def load_metric(name: str) -> Metric:
    """A metric by name or `module:function`.

    Raises:
        ConfigError: no such metric.
    """
    return cast(Metric, resolved("metric", name, METRICS))


def per_class(labels: Labels, predictions: Labels, n_labels: int) -> list[dict[str, float]]:
    """Precision, recall, F1 and number of rows of each class, in label order."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = np.arange(n_labels)
    scores = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    keys = ("precision", "recall", "f1", "rows")
    return [dict(zip(keys, (*map(float, row[:3]), int(row[3])), strict=True)) for row in zip(*scores, strict=True)]


def confusion(labels: Labels, predictions: Labels, n_labels: int) -> NDArray[np.int64]:
    """(K, K + 1) counts of rows by gold label and prediction; the last column counts those without one."""
    counts = np.zeros((n_labels, n_labels + 1), np.int64)
    np.add.at(counts, (labels, predictions), 1)  # -1 is the last column
    return counts
