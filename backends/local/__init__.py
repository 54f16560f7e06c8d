"""Models of `transformers` on this machine.

`LocalBackend` is imported when it is asked for: the files beside it that need no PyTorch (rows to token ids, where a
model's files are) then cost no seconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]


def __getattr__(name: str) -> Any:
    """Import `LocalBackend` when it is first used."""
    if name != "LocalBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from backends.local.backend import LocalBackend

    return LocalBackend
