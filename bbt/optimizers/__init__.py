"""Optimizers over whole populations: ask, tell, and the point they recommend.

Every one is deterministic given its seed and the losses it is told: a run is resumed by replaying them. To add
one, write a class with the three members of `Optimizer` in a file of its own and name it in `OPTIMIZERS`; any
other name is looked up in nevergrad's registry.
"""

from bbt.optimizers.base import Optimizer, Settings
from bbt.optimizers.cma import FullCMA, SeparableCMA
from bbt.optimizers.random_search import RandomSearch
from bbt.optimizers.zeroth_order import ZerothOrder

OPTIMIZERS: dict[str, tuple[type[Optimizer], str]] = {
    "cma": (FullCMA, "CMA-ES with full covariance (pycma), the paper's optimizer"),
    "cma-separable": (SeparableCMA, "CMA-ES with diagonal covariance (pycma), linear in d"),
    "random": (RandomSearch, "independent draws from N(0, sigma0^2): the baseline to beat"),
    "zeroth-order": (ZerothOrder, "two-point antithetic gradient estimate with Adam"),
}


def make_optimizer(name: str, settings: Settings) -> Optimizer:
    """An optimizer by our name or nevergrad's registry name.

    Raises:
        ConfigError: no such optimizer; the nearest valid name is suggested.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name][0](settings)
    from bbt.optimizers.nevergrad import Nevergrad

    return Nevergrad(name, settings, also_valid=tuple(OPTIMIZERS))


__all__ = ["OPTIMIZERS", "Optimizer", "Settings", "make_optimizer"]
