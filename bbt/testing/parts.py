"""The contracts of losses, metrics and tasks."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bbt.tasks import Example, Task, TaskSpec
from bbt.tasks.metrics import load_metric
from bbt.types import Labels, Losses, Scores

N, B, K = 4, 9, 3
"""Candidates, rows and labels of what losses are tried on."""
LABELS = np.arange(B) % K
"""(B,) gold labels."""
N_TOKENS = 7
"""T of the rows that tasks are asked for."""


def check_loss(loss: Callable[[Scores, Labels], Losses]) -> None:
    """Check that a loss is one number a candidate, of that candidate alone, does not feel a constant that is added to
    all labels of a row, falls where gold labels score higher, and is not finite where a score is NaN.

    Raises:
        AssertionError: it does not keep to that; says where.
    """
    scores = np.round(8 * np.random.default_rng(0).normal(scale=3, size=(N, B, K))).astype(np.float32) / 8
    given = scores.copy()
    losses = np.asarray(loss(scores, LABELS))
    assert losses.shape == (N,), f"losses of {N} candidates have shape {losses.shape}, expected ({N},)."
    assert np.isfinite(losses).all(), "losses of finite scores are not finite."
    assert np.array_equal(scores, given), "the loss has changed the scores that it was given."
    alone = np.concatenate([np.atleast_1d(loss(one[None], LABELS)) for one in scores])
    assert np.allclose(alone, losses), "a candidate's loss depends on the other candidates."
    shifted = loss(scores + np.arange(B, dtype=np.float32)[None, :, None], LABELS)
    assert np.allclose(shifted, losses), (
        "the loss feels a constant that is added to all labels of a row: scores are defined only up to one."
    )
    better = scores + 30 * np.eye(K, dtype=np.float32)[LABELS]
    assert (loss(better, LABELS) < losses).all(), "the loss does not fall where all gold labels score far higher."
    scores[1, 0, 2] = np.nan
    with np.errstate(invalid="ignore"):
        broken = loss(scores, LABELS)
    assert not np.isfinite(broken[1]), "a candidate with a NaN among its scores has a finite loss: it could be chosen."
    assert np.allclose(np.delete(broken, 1), np.delete(losses, 1)), "one candidate's NaN changes the others' losses."


def check_metric(metric: Callable[[Labels, NDArray[np.int64]], float]) -> None:
    """Check that a metric is a float in [0, 1], 1 where all is right, no better where a prediction is missing (-1),
    and that the order of the rows does not matter.

    Raises:
        AssertionError: it does not keep to that; says where.
    """
    labels, rng = np.arange(30) % 2, np.random.default_rng(0)
    guesses = rng.integers(0, 2, 30)
    for what, predictions in (("right", labels), ("guessed", guesses), ("missing", np.full(30, -1))):
        value = metric(labels, predictions)
        assert isinstance(value, float), f"the metric is a {type(value).__name__}, expected a float."
        assert 0.0 <= value <= 1.0, f"the metric of {what} predictions is {value}, expected 0 to 1."
    assert metric(labels, labels) == 1.0, f"the metric of right predictions is {metric(labels, labels)}, expected 1."
    order = rng.permutation(30)
    assert np.isclose(metric(labels[order], guesses[order]), metric(labels, guesses)), (
        "the metric depends on the order of the rows."
    )
    missing = np.where(guesses == labels, guesses, -1)
    missing[:10] = -1
    assert metric(labels, missing) < 1.0, "the metric is 1 where predictions are missing (-1)."


def check_task(task: Task | TaskSpec) -> None:
    """Check that a task puts its texts, T prompt tokens and one mask into every row (last, for a causal LM), and that
    its metrics keep their contract. A `TaskSpec` is checked for every kind of model.

    Raises:
        AssertionError: it does not; ConfigError: no {prompt}, label words that repeat, or a metric that is not there.
    """
    for kind in ("masked", "causal", "encoder-decoder"):
        worded = task.task("checked", kind) if isinstance(task, TaskSpec) else task
        _check_rows(worded, causal=kind == "causal" and isinstance(task, TaskSpec))
        for name in worded.metrics:
            check_metric(load_metric(name))


def _check_rows(task: Task, causal: bool) -> None:
    pair = "the second text" if task.template.takes_pair else ""
    (row,) = task.rows([Example("the first text", 0, pair)], N_TOKENS)
    n_tokens = sum(segment.n_tokens for segment in row)
    assert n_tokens == N_TOKENS, f"a row holds {n_tokens} prompt tokens where {N_TOKENS} were asked for."
    kinds = [segment.kind for segment in row]
    assert kinds.count("mask") == 1, f"a row holds {kinds.count('mask')} masks, expected one."
    assert not causal or kinds[-1] == "mask", "a causal LM's template goes on after {mask}."
    texts = {segment.text for segment in row if segment.kind == "text"}
    assert texts == {text for text in ("the first text", pair) if text}, f"a row's texts are {sorted(texts)}."
