"""Optimizers over whole populations: ask, tell, and the point they recommend.

Every one is deterministic given its seed and the losses it is told: a run is resumed by replaying them. To add
one, write a class with the members of `Optimizer` in a file of its own and name it in `OPTIMIZERS`; a config may also
name a `module:Class` of the user's own, and any other name is looked up in nevergrad's registry.
"""

from typing import cast

from bbt.names import Table, resolved
from bbt.optimizers.base import Optimizer, ScoreOptimizer, Settings

OPTIMIZERS: Table = {
    "cma": ("bbt.optimizers.cma:FullCMA", "CMA-ES with full covariance (pycma), the paper's optimizer"),
    "cma-separable": ("bbt.optimizers.cma:SeparableCMA", "CMA-ES with diagonal covariance (pycma), linear in d"),
    "kernel-surrogate": (
        "bbt.optimizers.kernel_surrogate:KernelSurrogate",
        "a model of the label scores in z, minimised in a trust region",
    ),
    "random": (
        "bbt.optimizers.random_search:RandomSearch",
        "independent draws from N(0, sigma0^2): the baseline to beat",
    ),
    "zeroth-order": (
        "bbt.optimizers.zeroth_order:ZerothOrder",
        "two-point antithetic gradient estimate with Adam",
    ),
}


def make_optimizer(name: str, settings: Settings) -> Optimizer:
    """An optimizer by our name, by nevergrad's registry name, or a `module:Class` of the user's own.

    Raises:
        ConfigError: no such optimizer (the nearest valid name is suggested), or one that cannot be imported or refuses
            the settings.
    """
    if ":" in name or name in OPTIMIZERS:
        return cast(type[Optimizer], resolved("optimizer", name, OPTIMIZERS))(settings)
    from bbt.optimizers.nevergrad import Nevergrad

    return Nevergrad(name, settings, also_valid=tuple(OPTIMIZERS))


__all__ = ["OPTIMIZERS", "Optimizer", "ScoreOptimizer", "Settings", "make_optimizer"]
