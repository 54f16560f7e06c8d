"""A pool makes several endpoints of one model look like one backend."""

from backends.pool.backend import PoolBackend

__all__ = ["PoolBackend"]
