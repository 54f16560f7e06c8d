"""The objective is the training loss of prompts, which the optimizer minimises."""

from collections.abc import Callable
from copy import copy
from typing import Protocol, runtime_checkable

from bbt.scoring.calibration import class_biases
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import finite_losses
from bbt.scoring.scorer import Scorer
from bbt.settings import CalibrationKind
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Labels, Latents, Losses, Scores


class TrainingLoss(Protocol):
    """The protocol of a loss of prompts that a search minimises."""

    def losses(self, prompts: AnyPrompts) -> Losses:
        """Compute the losses (n,) of soft prompts (n, T, H) or hard prompts (n, T); a broken candidate's is +inf. It
        counts n train queries."""

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """Compute the losses (n,) of the prompts that latents (n, d) stand for in a space; see `losses`."""

    def counted_in(self, ledger: Ledger) -> "TrainingLoss":
        """The same loss, whose costs are counted in another ledger."""

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Take note of losses (n,) of latents (n, d) that a resumed run has recorded."""

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Take note of losses (n,) of prompts that a resumed run has recorded."""


@runtime_checkable
class ScoredLoss(Protocol):
    """The protocol, beside `TrainingLoss`, of a loss that is taken of label scores and tells them too."""

    @property
    def labels(self) -> Labels:
        """The labels (B,) of the training rows."""

    def scored_latents(self, latents: Latents, space: Space) -> tuple[Losses, Scores]:
        """Compute the losses (n,) that `latent_losses` computes, and the label scores (n, B, K) of which they are
        taken: with class biases, or by a readout. It counts n train queries."""


class Objective:
    """The training loss of prompts. With a `calibration` each prompt's class biases are found first, and its loss is
    what remains with them; `content_free` scores rows that say nothing, where the calibration needs them."""

    def __init__(
        self,
        scorer: Scorer,
        loss: Callable[[Scores, Labels], Losses],
        ledger: Ledger,
        calibration: CalibrationKind = "none",
        content_free: Scorer | None = None,
    ) -> None:
        self._scorer, self._loss, self._ledger = scorer, loss, ledger
        self._calibration, self._content_free = calibration, content_free

    def losses(self, prompts: AnyPrompts) -> Losses:
        """Compute the losses (n,) of soft prompts (n, T, H) or hard prompts (n, T); a broken candidate's is +inf. It
        counts n train queries."""
        return self._judged(lambda scorer: scorer.scores(prompts))

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """Compute the losses (n,) of the prompts that latents (n, d) stand for in a space; see `losses`."""
        return self._judged(lambda scorer: scorer.latent_scores(latents, space))

    @property
    def labels(self) -> Labels:
        """The labels (B,) of the training rows."""
        return self._scorer.labels

    def scored_latents(self, latents: Latents, space: Space) -> tuple[Losses, Scores]:
        """Compute the losses (n,) of latents (n, d) and the calibrated scores (n, B, K) of which they are taken; see
        `losses`."""
        return self._scored(lambda scorer: scorer.latent_scores(latents, space))

    def counted_in(self, ledger: Ledger) -> "Objective":
        """The same loss, whose costs are counted in another ledger."""
        other = copy(self)
        other._ledger, other._scorer = ledger, self._scorer.counted_in(ledger)
        other._content_free = self._content_free and self._content_free.counted_in(ledger)
        return other

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Take note of losses of latents that a resumed run has recorded; this objective needs none of them."""

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Take note of losses of prompts that a resumed run has recorded; this objective needs none of them."""

    def _judged(self, scores_by: Callable[[Scorer], Scores]) -> Losses:
        return self._scored(scores_by)[0]

    def _scored(self, scores_by: Callable[[Scorer], Scores]) -> tuple[Losses, Scores]:
        scores = scores_by(self._scorer)
        self._ledger.train_queries += len(scores)
        calibrated = self._calibrated(scores, scores_by)
        return finite_losses(self._loss(calibrated, self._scorer.labels)), calibrated

    def _calibrated(self, scores: Scores, scores_by: Callable[[Scorer], Scores]) -> Scores:
        """The scores (n, B, K) with each prompt's class biases."""
        free = self._content_free
        if self._calibration == "none":
            return scores
        content_free = (lambda: scores_by(free)) if free else None
        return scores + class_biases(self._calibration, scores, self._scorer.labels, content_free)[:, None]
