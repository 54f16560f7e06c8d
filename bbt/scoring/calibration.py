"""Class biases: what is added to a prompt's label scores so that no class is answered for its label word's sake.

A language model finds some label words likelier than others whatever the text says (Zhao et al. 2021, arXiv
2102.09690). K - 1 numbers take that away and cost no query. Each way of finding them is exactly invariant: a constant
that is added to all scores of a class is taken off again.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bbt.scoring.losses import cross_entropy, log_softmax
from bbt.settings import CalibrationKind
from bbt.types import Labels, RowScores, Scores

Biases: TypeAlias = NDArray[np.float64]
"""(n, K) class biases of n prompts, each prompt's with a sum of zero."""

PRIOR = 1.0
"""The strength of the prior on fitted biases, in rows; it was chosen on training rows."""

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing (Zhao et al. 2021, section 5)."""

MAX_STEPS, MAX_HALVINGS, TOLERANCE = 50, 40, 1e-6


def class_biases(
    kind: CalibrationKind, scores: Scores, labels: Labels, content_free: Callable[[], Scores] | None = None
) -> Biases:
    """The class biases (n, K) of n prompts with label scores (n, B, K) on rows whose labels are (B,).

    none: they are zeros. fitted: they are fitted on the labels (`fitted_biases`). batch: they are minus the rows' mean
    log-probability and use no label (Zhou et al. 2023, arXiv 2309.17249). content-free: they are minus the mean
    log-probability on rows that say nothing, whose scores (n, F, K) `content_free` gives; the paper averages
    probabilities, which is not invariant. A prompt whose scores are not finite has zeros.
    """
    if kind == "none":
        return np.zeros((len(scores), scores.shape[-1]))
    taken_off = scores if kind != "content-free" or content_free is None else content_free()
    finite = np.isfinite(scores).all(axis=(1, 2)) & np.isfinite(taken_off).all(axis=(1, 2))
    biases = np.zeros((len(scores), scores.shape[-1]))
    if kind == "fitted":
        biases[finite] = fitted_biases(scores[finite], labels)
    else:
        biases[finite] = _centred(-log_softmax(taken_off[finite]).mean(axis=1))
    return biases


def fitted_biases(scores: Scores, labels: Labels, prior: float = PRIOR) -> Biases:
    """Biases (n, K) fitted to the labels (B,) of rows with scores (n, B, K), for each prompt by itself.

    With s' the scores less their class's mean over the rows, the biases b minimise

        f(b) = sum_i [ logsumexp_k(s'_ik + b_k) - (s'_iy + b_y) ] + prior / 2 * sum_k b_k^2                       (1)

    and b less the means is what they add to the raw scores. So the prior pulls towards scores whose class means are
    equal, and not towards the raw ones. Newton's method; a step is halved until it lowers f enough (Armijo), so that
    label words of vanishing probability cannot make it diverge.
    """
    raw = log_softmax(scores)
    means = raw.mean(axis=1)
    centred = raw - means[:, None]
    targets = np.bincount(labels, minlength=raw.shape[-1]).astype(np.float64)
    biases = np.zeros_like(means)
    values = _penalised(centred, biases, labels, prior)
    active = np.arange(len(raw))
    diagonal = np.arange(raw.shape[-1])
    for _ in range(MAX_STEPS):
        probabilities = np.exp(log_softmax(centred[active] + biases[active, None]))
        totals = probabilities.sum(axis=1)
        gradient = totals - targets + prior * biases[active]
        curvature = -np.einsum("nbk,nbl->nkl", probabilities, probabilities, optimize=True)
        curvature[:, diagonal, diagonal] += totals + prior
        step = -np.linalg.solve(curvature, gradient[..., None])[..., 0]
        slope = (gradient * step).sum(axis=-1)
        going = -slope > TOLERANCE**2
        active, step, slope = active[going], step[going], slope[going]
        if not len(active):
            break
        _descend(centred, biases, values, labels, prior, active, step, slope)
    return _centred(biases - means)


def held_out(
    kind: CalibrationKind,
    train: Scores,
    train_labels: Labels,
    dev: Scores,
    dev_labels: Labels,
    content_free: Callable[[], Scores] | None = None,
    folds: int = 8,
) -> Scores:
    """Dev scores (n, Bd, K) with biases that know nothing of the row they are added to. Fitted ones are fitted on the
    train rows and on the dev rows of the other folds; biases that use no label need no such care."""
    if kind != "fitted":
        return dev + class_biases(kind, dev, dev_labels, content_free)[:, None]
    part = np.arange(len(dev_labels)) % min(folds, len(dev_labels))
    calibrated = np.array(dev, dtype=np.float64)
    for fold in np.unique(part):
        others = part != fold
        rows = np.concatenate([train, dev[:, others]], axis=1)
        labels = np.concatenate([train_labels, dev_labels[others]])
        calibrated[:, ~others] += class_biases(kind, rows, labels)[:, None]
    return calibrated


def with_biases(scores: RowScores, biases: tuple[float, ...] | None) -> RowScores:
    """The scores (B, K) of one prompt with its biases (K,) added, if it has any."""
    return scores if biases is None else np.asarray(scores + np.array(biases), dtype=np.float32)


def _centred(biases: NDArray[Any]) -> Biases:
    return np.asarray(biases - biases.mean(axis=-1, keepdims=True))


def _descend(
    scores: Scores,
    biases: Biases,
    values: NDArray[np.float64],
    labels: Labels,
    prior: float,
    active: NDArray[np.int64],
    step: Biases,
    slope: NDArray[np.float64],
) -> None:
    """Take each active prompt's step in place, halved until f falls by at least a ten-thousandth of what the slope
    promises."""
    length, waiting = np.ones(len(active)), np.arange(len(active))
    for _ in range(MAX_HALVINGS):
        rows = active[waiting]
        trial = biases[rows] + length[waiting, None] * step[waiting]
        found = _penalised(scores[rows], trial, labels, prior)
        good = found <= values[rows] + 1e-4 * length[waiting] * slope[waiting] + 1e-12 * np.abs(values[rows])
        biases[rows[good]], values[rows[good]] = trial[good], found[good]
        waiting = waiting[~good]
        length[waiting] /= 2
        if not len(waiting):
            return


def _penalised(scores: Scores, biases: Biases, labels: Labels, prior: float) -> NDArray[np.float64]:
    """f of equation (1) for each prompt: (n,)."""
    rows = len(labels) * cross_entropy(scores + biases[:, None], labels)
    return np.asarray(rows + prior / 2 * (biases**2).sum(axis=-1))
