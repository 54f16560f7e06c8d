"""Zeroth-order gradient descent: a two-point antithetic estimate, stepped by Adam."""

import numpy as np
from numpy.typing import NDArray

from bbt.errors import ConfigError
from bbt.optimizers.base import Settings
from bbt.types import Latents, Losses


class ZerothOrder:
    """An optimizer that estimates a gradient. Half the population are directions u ~ N(0, I); each is scored at
    mean + sigma0 u and mean - sigma0 u.

    g = mean over u of (f+ - f-) / (2 sigma0) u  (Nesterov and Spokoiny 2017, eq. 30); Adam (Kingma and Ba 2015)
    then steps by learning_rate * sigma0.

    Raises:
        ConfigError: an odd population.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.population_size % 2:
            raise ConfigError(f"zeroth-order needs an even population, got {settings.population_size}.")
        self._settings = settings
        self._rng = np.random.RandomState(settings.seed)
        self._mean = np.zeros(settings.intrinsic_dim)
        self._first, self._second = np.zeros_like(self._mean), np.zeros_like(self._mean)
        self._steps = 0

    def ask(self) -> Latents:
        """The candidates (n, d): mean + sigma0 u for every direction u, then mean - sigma0 u in the same order."""
        s = self._settings
        offsets = s.sigma0 * self._rng.standard_normal((s.population_size // 2, s.intrinsic_dim))
        return self._clipped(np.concatenate([self._mean + offsets, self._mean - offsets]))

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Estimate the gradient from the pairs of losses, and take one Adam step against it."""
        half = len(latents) // 2
        directions = (latents[:half] - latents[half:]) / (2.0 * self._settings.sigma0)
        slopes = (losses[:half] - losses[half:]) / (2.0 * self._settings.sigma0)
        self._adam_step((slopes[:, None] * directions).mean(axis=0))

    def _adam_step(self, gradient: NDArray[np.float64], beta1: float = 0.9, beta2: float = 0.999) -> None:
        self._steps += 1
        self._first = beta1 * self._first + (1 - beta1) * gradient
        self._second = beta2 * self._second + (1 - beta2) * gradient**2
        first = self._first / (1 - beta1**self._steps)
        second = self._second / (1 - beta2**self._steps)
        rate = self._settings.learning_rate * self._settings.sigma0
        self._mean = self._clipped(self._mean - rate * first / (np.sqrt(second) + 1e-12))

    def _clipped(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        bounds = self._settings.bounds
        return points if bounds is None else points.clip(*bounds)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The current iterate (d,)."""
        return self._mean
