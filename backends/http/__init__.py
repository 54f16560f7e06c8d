"""A model behind `bbt serve`, on another machine or in another process."""

from backends.http.backend import HttpBackend

__all__ = ["HttpBackend"]
