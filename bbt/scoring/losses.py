"""Losses over label scores: (n, B, K) and (B,) -> (n,).

Each is invariant to one constant per example, so that logits and log-probabilities are equally good.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bbt.names import resolved
from bbt.settings import LOSSES
from bbt.tasks.metrics import Metric
from bbt.types import Labels, Losses, Scores


def log_softmax(scores: Scores) -> NDArray[np.float64]:
    """(n, B, K) label scores -> log-probabilities over the K label words, in float64."""
    with np.errstate(invalid="ignore"):  # a broken candidate's NaN is dealt with by `finite_losses`
        shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def gold(values: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """(n, B, K) -> (n, B): the value of each example's own label."""
    return np.take_along_axis(values, labels[None, :, None], axis=-1)[..., 0]


def cross_entropy(scores: Scores, labels: Labels) -> Losses:
    """Mean negative log-probability of the gold label (BBT section 3.1)."""
    return np.asarray(-gold(log_softmax(scores), labels).mean(axis=-1))


def hinge(scores: Scores, labels: Labels, margin: float = 2.0) -> Losses:
    """Mean over the examples of the sum over wrong labels of max(0, margin + wrong - gold).

    Margin 2 is the released code's setting for MRPC, SNLI and RTE.
    """
    scores64 = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        violation = np.maximum(0.0, margin + scores64 - gold(scores64, labels)[..., None])
    return np.asarray((violation.sum(axis=-1) - margin).mean(axis=-1))


def negative_metric(scores: Scores, labels: Labels, metric: Metric) -> Losses:
    """Minus the task's metric of the argmax predictions: flat almost everywhere, but what is asked for. NaN where a
    candidate has a NaN, whose argmax means nothing."""
    values = np.array([-metric(labels, row) for row in predicted(scores)])
    return np.where(np.isnan(scores).any(axis=(1, 2)), np.nan, values)


def predicted(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """(..., K) -> (...): index of the highest score; -1 where all are equal, as where a sampled answer named no label:
    that is no prediction of label 0."""
    undecided = (scores == scores[..., :1]).all(axis=-1)
    return np.where(undecided, -1, scores.argmax(axis=-1))


def finite_losses(losses: Losses) -> Losses:
    """NaN and infinities become +inf: a broken candidate is worst, never best."""
    return np.where(np.isfinite(losses), losses, np.inf)


def load_loss(name: str, margin: float, metric: Metric) -> Callable[[Scores, Labels], Losses]:
    """A loss by name, with the hinge's margin and the metric that a negative metric is of; or `module:function`, which
    takes scores and labels as `cross_entropy` does.

    Raises:
        ConfigError: no such loss.
    """
    loss = cast(Callable[..., Losses], resolved("loss", name, LOSSES))
    extra: dict[str, dict[str, Any]] = {"hinge": {"margin": margin}, "negative_metric": {"metric": metric}}
    return partial(loss, **extra.get(name, {}))
