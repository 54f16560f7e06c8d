"""BBTv2's divide and conquer (arXiv 2205.11200, section 4.2): one strategy a layer, visited from bottom to top."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bbt.optimizers.base import Optimizer
from bbt.types import Latents, Losses


class Layerwise:
    """A search point is (z_1, ..., z_L). Each generation one layer's strategy proposes its part, and the others
    stand at the best point that they have seen (released code: `xbest`), at first at zero: the untuned prompt."""

    def __init__(self, strategies: Sequence[Optimizer]) -> None:
        self._strategies = strategies
        self._best = [np.zeros_like(strategy.mean) for strategy in strategies]
        self._lowest = [np.inf] * len(strategies)
        self._layer = 0

    def ask(self) -> Latents:
        """Candidates (n, L * d) that differ in the layer whose turn it is."""
        own = self._strategies[self._layer].ask()
        parts = [np.tile(best, (len(own), 1)) for best in self._best]
        parts[self._layer] = own
        return np.concatenate(parts, axis=1)

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Update the layer that has asked, and go on to the one above it, or to the lowest again."""
        own = np.split(latents, len(self._strategies), axis=1)[self._layer]
        self._strategies[self._layer].tell(own, losses)
        if losses.min() < self._lowest[self._layer]:
            self._lowest[self._layer] = float(losses.min())
            self._best[self._layer] = own[losses.argmin()]
        self._layer = (self._layer + 1) % len(self._strategies)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The point (L * d,) at which every layer stands at the best that it has seen."""
        return np.concatenate(self._best)
