"""Random search, which any optimizer has to beat."""

import numpy as np
from numpy.typing import NDArray

from bbt.optimizers.base import Settings
from bbt.types import Latents, Losses


class RandomSearch:
    """An optimizer that draws every candidate from N(0, sigma0^2 I), clipped to the bounds, and recommends the best
    that it has seen."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rng = np.random.RandomState(settings.seed)
        self._best = (np.inf, np.zeros(settings.intrinsic_dim))

    def ask(self) -> Latents:
        """The next population (n, d)."""
        return self.ask_for(self._settings.population_size)

    def ask_for(self, n: int) -> Latents:
        """The next n candidates (n, d)."""
        s = self._settings
        latents = s.sigma0 * self._rng.standard_normal((n, s.intrinsic_dim))
        return latents if s.bounds is None else latents.clip(*s.bounds)

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Remember the best candidate so far."""
        best = int(losses.argmin())
        if losses[best] < self._best[0]:
            self._best = (float(losses[best]), latents[best].copy())

    @property
    def mean(self) -> NDArray[np.float64]:
        """The best candidate (d,) so far."""
        return self._best[1]
