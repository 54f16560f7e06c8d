"""The training loss of prompts: what the optimizer minimises."""

from collections.abc import Callable

from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import finite_losses
from bbt.scoring.scorer import Scorer
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Labels, Latents, Losses, Scores


class Objective:
    """Training loss of prompts: what the optimizer minimises."""

    def __init__(self, scorer: Scorer, loss: Callable[[Scores, Labels], Losses], ledger: Ledger) -> None:
        self._scorer, self._loss, self._ledger = scorer, loss, ledger

    def losses(self, prompts: AnyPrompts) -> Losses:
        """(n, T, H) or (n, T) -> (n,); a broken candidate is +inf. Counts n train queries."""
        return self._judged(self._scorer.scores(prompts))

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """Losses of the space's prompts: (n, d) -> (n,), as `losses`."""
        return self._judged(self._scorer.latent_scores(latents, space))

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Told of losses of latents that a resumed run has recorded."""

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Told of losses of prompts that a resumed run has recorded."""

    def _judged(self, scores: Scores) -> Losses:
        self._ledger.train_queries += len(scores)
        return finite_losses(self._loss(scores, self._scorer.labels))
