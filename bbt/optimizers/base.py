"""What every optimizer takes and does."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bbt.types import Latents, Losses


@dataclass(frozen=True)
class Settings:
    """Search settings; the defaults are BBT's (Table 1): d = 500, population 20, sigma0 = 1 (released code).

    `bounds` limits each coordinate of z (the ICML paper: [-5, 5]), `step_size_rule` is CMA-ES's (the paper:
    CSA), `learning_rate` the zeroth-order estimate's step in units of sigma0, `budget` the queries it may plan
    for (nevergrad's portfolio optimizers choose by it).
    """

    intrinsic_dim: int = 500
    population_size: int = 20
    seed: int = 0
    sigma0: float = 1.0
    bounds: tuple[float, float] | None = None
    step_size_rule: Literal["csa", "tpa"] = "csa"
    learning_rate: float = 0.1
    budget: int = 8000


class Optimizer(Protocol):
    """Ask/tell over populations, numpy only."""

    def __init__(self, settings: Settings) -> None: ...

    def ask(self) -> Latents:
        """The next candidates (n, d)."""

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Losses (n,), all finite, of the candidates last asked for."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """(d,) the point recommended now: the distribution's mean, or the best seen where there is none."""


class OwnGenerator:
    """A context in which NumPy's global generator is one of ours, which goes on from context to context."""

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
