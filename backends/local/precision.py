"""Whether half precision ranks candidates as full precision does."""

import numpy as np
from numpy.typing import NDArray

from bbt.types import Losses


def rank_correlation(a: Losses, b: Losses) -> float:
    """Spearman's rank correlation of two (n,) without ties."""
    ranks: NDArray[np.int64] = np.array([a.argsort().argsort(), b.argsort().argsort()])
    return float(np.corrcoef(ranks)[0, 1])
