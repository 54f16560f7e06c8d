"""Several endpoints of one model as one backend."""

from backends.pool.backend import PoolBackend

__all__ = ["PoolBackend"]
