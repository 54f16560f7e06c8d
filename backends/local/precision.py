"""Whether half precision ranks candidates as full precision does."""

from bbt.types import Losses


def rank_correlation(a: Losses, b: Losses) -> float:
    """Spearman's rank correlation of two (n,) without ties."""
    n, distance = len(a), a.argsort().argsort() - b.argsort().argsort()
    return float(1.0 - 6.0 * (distance**2).sum() / (n * (n**2 - 1)))
