"""Metrics by name, from scikit-learn: (gold labels (B,), predictions (B,)) -> float in [0, 1]."""

from collections.abc import Callable
from typing import TypeAlias, cast

from bbt.names import resolved
from bbt.types import Labels

Metric: TypeAlias = Callable[[Labels, Labels], float]


def accuracy(labels: Labels, predictions: Labels) -> float:
    """Share of examples predicted right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: Labels, predictions: Labels) -> float:
    """F1 of class 1, as the paper reports for MRPC; 0 where class 1 is never predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=[1], average="macro", zero_division=0))


def macro_f1(labels: Labels, predictions: Labels) -> float:
    """Unweighted mean of the classes' F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


METRICS = {
    "accuracy": "bbt.tasks.metrics:accuracy",
    "f1": "bbt.tasks.metrics:f1",
    "macro_f1": "bbt.tasks.metrics:macro_f1",
}
"""Name -> where the function is."""


def load_metric(name: str) -> Metric:
    """A metric by name or `module:function`.

    Raises:
        ConfigError: no such metric.
    """
    return cast(Metric, resolved("metric", name, METRICS))
