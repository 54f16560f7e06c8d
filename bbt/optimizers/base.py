"""The settings that every optimizer takes, and the protocol that every optimizer keeps."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bbt.types import Labels, Latents, Losses, Scores


@dataclass(frozen=True)
class Settings:
    """The settings of one search. The defaults are BBT's (arXiv 2201.03514, Table 1), sigma0 that of its released
    code."""

    intrinsic_dim: int = 500
    """The intrinsic dimension d."""
    population_size: int = 20
    """The number of candidates n."""
    seed: int = 0
    """The optimizer draws from a generator of this seed and from no other."""
    sigma0: float = 1.0
    """Standard deviation of the first population's coordinates around 0."""
    bounds: tuple[float, float] | None = None
    """Lowest and highest value of each coordinate of z (the paper: -5 and 5; none: no limit)."""
    step_size_rule: Literal["csa", "tpa"] = "csa"
    """The rule by which CMA-ES adapts sigma (the paper: CSA)."""
    learning_rate: float = 0.1
    """The zeroth-order estimate's step, in units of sigma0."""
    budget: int = 8000
    """Queries for which the optimizer may plan: nevergrad's portfolio optimizers choose by it. It is the budget that a
    run began with, also where that has been extended, since what was asked for before is replayed."""


class Optimizer(Protocol):
    """An optimizer proposes whole populations and is told their losses. It uses numpy only, and draws from its own
    generator: told the same losses, it proposes the same candidates, so that a run can be replayed."""

    def __init__(self, settings: Settings) -> None: ...

    def ask(self) -> Latents:
        """The next candidates (n, d)."""

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Take note of the losses (n,), all finite, of the candidates (n, d) that were last asked for."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """The point (d,) that the optimizer recommends now: its distribution's mean, or the best candidate seen where
        it has no distribution."""


@runtime_checkable
class AsynchronousOptimizer(Protocol):
    """The protocol, beside `Optimizer`, of an optimizer that need not be told of candidates in the order in which it
    has proposed them: `tell` takes any `population_size` of them, some of which may be older than the last ones."""

    def ask_for(self, n: int) -> Latents:
        """The next n candidates (n, d), as many as one likes."""


@runtime_checkable
class ScoreOptimizer(Protocol):
    """The protocol, beside `Optimizer`, of an optimizer that learns from label scores: a search that has them calls
    `tell_scores` instead of `tell`. Told the same scores it proposes the same candidates; a run's log holds them."""

    def tell_scores(self, latents: Latents, losses: Losses, scores: Scores, labels: Labels) -> None:
        """Take note of the losses (n,), all finite, and label scores (n, B, K) of the candidates (n, d) that were last
        asked for, on training rows with labels (B,).

        The scores are those of which the losses are taken, so with class biases, or read from many words by left-out
        rows; each row's have a mean of zero, and all are rounded to float16. A broken candidate's are not finite.
        """


class OwnGenerator:
    """A context in which a generator of ours stands in for NumPy's global one, for libraries that draw from that. It
    goes on from context to context, and the global one is afterwards as it was."""

    def __init__(self, seed: int) -> None:
        self._own: Any = np.random.RandomState(seed).get_state()
        self._outside: Any = None

    def __enter__(self) -> None:
        self._outside = np.random.get_state()
        np.random.set_state(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = np.random.get_state()
        np.random.set_state(self._outside)
