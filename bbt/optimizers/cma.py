"""CMA-ES by pycma, with the step-size rule explicit.

pycma 4 silently switches from CSA to TPA for d >= 300; a faithful run of the paper must ask for CSA.
"""

import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbt.blas import one_thread
from bbt.drawing import import_matplotlib
from bbt.errors import ConfigError
from bbt.optimizers.base import OwnGenerator, Settings
from bbt.types import Latents, Losses

MAX_FULL_DIM = 2000
"""Largest d of a full covariance. pycma holds several d x d matrices in float64 (about 32 MB each at this d, 800 MB
at d = 10,000) and its eigendecompositions take time in d^3; the covariance is hardly learned there anyway: its
learning rate falls with 1 / d^2 (Hansen 2016, arXiv 1604.00772, eq. 57)."""


def pycma() -> Any:
    """Import the package `cma`, without the warnings of its optional parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moarchiving and matplotlib, which only other parts of pycma use
        import_matplotlib()
        import cma

    return cma


@cache
def _strategy_type() -> Any:
    """pycma's strategy, which within bounds compares each standard deviation with its limits in Python, one by one.
    Here it does so only where one is beyond them."""

    class Strategy(pycma().CMAEvolutionStrategy):  # type: ignore[misc]  # pycma has no types
        def _stds_into_limits(self, *args: Any, **kwargs: Any) -> None:
            stds, least, most = self.stds, self.opts["minstd"], self.opts["maxstd"]
            if np.any(stds < least) or np.any(stds > most):
                super()._stds_into_limits(*args, **kwargs)

    return Strategy


class FullCMA:
    """CMA-ES that adapts a full covariance matrix, as the released code's does.

    Raises:
        ConfigError: more than `MAX_FULL_DIM` dimensions, before anything is allocated.
    """

    diagonal = False

    def __init__(self, settings: Settings) -> None:
        d = settings.intrinsic_dim
        if d > MAX_FULL_DIM and not self.diagonal:
            raise ConfigError(
                f"full CMA-ES in {d} dimensions would hold {d} x {d} matrices ({8 * d * d / 1e9:.1f} GB each); it "
                f"takes up to {MAX_FULL_DIM}. Choose optimizer.name: cma-separable, whose cost is linear in d."
            )
        self._two_point = settings.step_size_rule == "tpa"
        self._some_come_late = False
        self._strategy = _strategy_type()(np.zeros(d), settings.sigma0, self.options(settings))

    @classmethod
    def options(cls, settings: Settings) -> dict[str, Any]:
        """pycma's options; a generator of our own leaves NumPy's global one alone."""
        from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA

        rules = {"csa": CMAAdaptSigmaCSA, "tpa": CMAAdaptSigmaTPA}
        return {
            "popsize": settings.population_size,
            "seed": np.nan,
            "randn": np.random.RandomState(settings.seed).randn,
            "bounds": list(settings.bounds) if settings.bounds else [None, None],
            "AdaptSigma": rules[settings.step_size_rule],
            "CMA_diagonal": cls.diagonal,
            "verbose": -9,
            "verb_log": 0,
        }

    def ask(self) -> Latents:
        """The next generation (n, d)."""
        with one_thread():
            return np.array(self._strategy.ask())

    def ask_for(self, n: int) -> Latents:
        """The next n candidates (n, d), drawn from the distribution as it is now.

        Raises:
            ConfigError: the step size is adapted by TPA, which compares two certain candidates of a generation.
        """
        if self._two_point:
            raise ConfigError("optimizer.asynchronous goes with step_size_rule: csa, not with tpa.")
        self._some_come_late = True
        with one_thread():
            return np.array(self._strategy.ask(n))

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Update the distribution's mean, step size and covariance."""
        with one_thread(), OwnGenerator(0), warnings.catch_warnings():
            # TPA checks itself at random places, drawn from the global generator, which is why it gets one of its own.
            if self._some_come_late:  # so may pycma's mirrored samples of populations below 6, which it would warn of
                warnings.simplefilter("ignore", pycma().evolution_strategy.InjectionWarning)
            self._strategy.tell(list(latents), losses.tolist())

    @property
    def mean(self) -> NDArray[np.float64]:
        """The distribution's mean (d,), inside the bounds."""
        strategy = self._strategy
        return np.array(strategy.gp.pheno(strategy.mean, into_bounds=strategy.boundary_handler.repair))


class SeparableCMA(FullCMA):
    """CMA-ES that adapts a diagonal covariance (Ros and Hansen 2008): at d = 500 it searches like the full one in a
    fraction of the time."""

    diagonal = True
