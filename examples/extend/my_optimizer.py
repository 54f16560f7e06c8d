"""An optimizer: populations around the best point seen, closer to it from generation to generation."""

import numpy as np

from bbt.optimizers import Settings


class Shrinking:
    def __init__(self, settings: Settings) -> None:
        self._settings, self._sigma, self._lowest = settings, settings.sigma0, np.inf
        self._rng = np.random.default_rng(settings.seed)  # never NumPy's global one: a run is resumed by its seed
        self.mean = np.zeros(settings.intrinsic_dim)

    def ask(self) -> np.ndarray:
        s = self._settings
        points = self.mean + self._sigma * self._rng.standard_normal((s.population_size, s.intrinsic_dim))
        return points.clip(*s.bounds) if s.bounds else points

    def tell(self, latents: np.ndarray, losses: np.ndarray) -> None:
        self._sigma *= 0.97
        if losses.min() < self._lowest:
            self._lowest, self.mean = losses.min(), latents[losses.argmin()]
