"""Masked and causal language models of `transformers`, on this machine."""

from backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
