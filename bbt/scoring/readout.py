"""A readout answers from many words: a label's score is that of its own word and a weighted sum of other words' scores.

A language model tells more about a row by a hundred words than by one word a label, and a query returns them all. The
weights are fitted on the labelled rows, and shrunk towards the label words with class biases, which is where a readout
ends that finds nothing else. Decoder tuning (DecT, Cui et al. 2022, arXiv 2212.08408) is its relative.

The fit is one regularised least-squares step from the calibrated label words, so that each row's scores under the
weights that the other rows give are known in closed form: a search minimises the loss of those, and not of answers that
were fitted to the row itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bbt.scoring.calibration import class_biases
from bbt.scoring.losses import gold, log_softmax
from bbt.types import Labels, RowScores, Scores

RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""The ridges that are tried, for words whose scores have a total variance of 1."""
STEPS = tuple(2.0 ** (i / 2) for i in range(11))
"""The lengths of the step that are tried, 1 to 32."""
MARGIN = 3.0
"""The paired standard errors by which a readout must beat the calibrated label words on left-out rows. Where it had
nothing to give, the best of those tried seemed better by up to 2.4; where it paid, by 5 and more (examples/RESULTS.md).
"""


@dataclass(frozen=True)
class Strength:
    """How far a readout may go from the calibrated label words."""

    ridge: float
    """The ridge of the least squares: the larger, the smaller the weights."""
    step: float
    """The factor by which what the least squares found is multiplied."""


@dataclass(frozen=True)
class Readout:
    """How the scores of M words become those of K labels."""

    weights: NDArray[np.float32]
    """(K, M) weights of the words' scores. Each label's have a sum of 1, so that a constant which is added to all words
    of a row changes no answer."""
    biases: tuple[float, ...]
    """(K,) class biases, with a sum of zero."""


def fitted_readout(scores: RowScores, labels: Labels, n_labels: int, strength: Strength) -> Readout:
    """Fit a prompt's readout to rows with scores (B, M) of M words, the first K = `n_labels` of which are the label
    words, and labels (B,)."""
    step = _Step(scores[None], labels, n_labels)
    inverse = step.inverse(strength.ridge)
    residual = step.residual - step.residual.mean(axis=1, keepdims=True)
    slopes = strength.step * np.swapaxes(inverse @ residual, 1, 2) @ step.words / step.scale
    weights = np.eye(n_labels, scores.shape[1]) + slopes[0]
    biases = step.biases + strength.step * step.residual.mean(axis=1) - (slopes @ step.means[..., None])[..., 0]
    return Readout(weights.astype(np.float32), tuple((biases - biases.mean())[0].tolist()))


def left_out_scores(scores: Scores, labels: Labels, n_labels: int, strength: Strength) -> Scores:
    """Each row's label scores (n, B, K), of n prompts with scores (n, B, M), by the weights that the other rows give.
    Only the class biases have seen the row itself. A prompt whose scores are not finite has NaN."""
    finite = np.isfinite(scores).all(axis=(1, 2))
    left_out = np.full((*scores.shape[:2], n_labels), np.nan)
    step = _Step(scores[finite], labels, n_labels)
    left_out[finite] = step.calibrated + strength.step * step.left_out(strength.ridge)
    return left_out


def chosen_strength(scores: RowScores, labels: Labels, n_labels: int) -> Strength | None:
    """The strength under which the left-out rows are answered best: scores (B, M), labels (B,). None where that is not
    better than the calibrated label words by more than `MARGIN`: a readout is to do no harm."""
    step = _Step(scores[None], labels, n_labels)
    before = _row_losses(step.calibrated, labels)
    best, chosen = before, None
    for ridge in RIDGES:
        left_out = step.left_out(ridge)
        for length in STEPS:
            losses = _row_losses(step.calibrated + length * left_out, labels)
            if losses.mean() < best.mean():
                best, chosen = losses, Strength(ridge, length)
    gains = before - best
    return chosen if gains.mean() > MARGIN * gains.std(ddof=1) / np.sqrt(len(gains)) else None


def _row_losses(scores: Scores, labels: Labels) -> NDArray[np.float64]:
    """The cross-entropy (B,) of each row of one prompt."""
    return np.asarray(-gold(log_softmax(scores), labels)[0])


class _Step:
    """The least squares that n prompts with scores (n, B, M) share: what the calibrated label words leave to be
    explained, and the words that may explain it."""

    def __init__(self, scores: Scores, labels: Labels, n_labels: int) -> None:
        own = scores[..., :n_labels].astype(np.float64)
        self.biases = class_biases("fitted", own, labels)
        self.calibrated = own + self.biases[:, None]
        self.residual = np.eye(n_labels)[labels] - np.exp(log_softmax(self.calibrated))
        words = scores.astype(np.float64)
        words = words - words.mean(axis=2, keepdims=True)
        self.means = words.mean(axis=1)
        words = words - self.means[:, None]
        self.scale = np.sqrt((words**2).sum(axis=2).mean(axis=1)).clip(1e-12)[:, None, None]
        self.words = words / self.scale
        self._gram = self.words @ np.swapaxes(self.words, 1, 2)

    def inverse(self, ridge: float) -> NDArray[np.float64]:
        """The inverse (n, B, B) of X X^T + ridge I, where X (B, M) are the words."""
        return np.asarray(np.linalg.inv(self._gram + ridge * np.eye(self._gram.shape[1])))

    def left_out(self, ridge: float) -> NDArray[np.float64]:
        """What (n, B, K) the other rows foresee of each row's residual r, with the hat matrix H of a ridge regression
        and its intercept: r_i - (r_i - (H r)_i) / (1 - H_ii)."""
        hat = self._gram @ self.inverse(ridge) + 1 / self._gram.shape[1]
        missed = (self.residual - hat @ self.residual) / (1 - np.diagonal(hat, axis1=1, axis2=2))[..., None]
        return np.asarray(self.residual - missed)
