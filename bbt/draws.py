"""Random numbers that are the same on every machine and with every version of NumPy.

They are made of the raw bits of PCG64, whose stream NumPy guarantees for all versions (its higher-level distributions
may change), and normal numbers are rounded to a grid before they are scaled, so that last-bit differences between maths
libraries vanish.
"""

import math

import numpy as np
from numpy.typing import NDArray

_GRID = 2.0**-20
_BLOCK = 2**20


def stable_uniform(seed: int, n: int, skipped: int = 0) -> NDArray[np.float64]:
    """n uniform numbers in [0, 1) from the top 53 bits of PCG64's raw output, `skipped` numbers further on."""
    raw = np.random.PCG64(seed).advance(skipped).random_raw(n)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53)


def stable_normal(seed: int, n: int) -> NDArray[np.float64]:
    """n standard normal numbers by Box and Muller, rounded to a grid of 2^-20."""
    half = (n + 1) // 2
    normals = np.empty(2 * half)
    for start in range(0, half, _BLOCK):  # in blocks, since A may be large
        size = min(_BLOCK, half - start)
        radius = np.sqrt(-2.0 * np.log1p(-stable_uniform(seed, size, start)))
        angle = 2.0 * math.pi * stable_uniform(seed, size, half + start)
        normals[start : start + size] = on_grid(radius * np.cos(angle))
        normals[half + start : half + start + size] = on_grid(radius * np.sin(angle))
    return normals[:n]


def stable_choice(seed: int, n_items: int, n: int) -> NDArray[np.int64]:
    """n indices in [0, n_items), drawn with replacement."""
    return (stable_uniform(seed, n) * n_items).astype(np.int64)


def on_grid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values rounded to multiples of 2^-20."""
    return np.round(values / _GRID) * _GRID
