"""Models behind OpenAI-compatible APIs, each imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.openai.text import TextBackend
    from backends.openai.vllm import VLLMBackend

_HOME = {"TextBackend": "backends.openai.text", "VLLMBackend": "backends.openai.vllm"}

__all__ = ["TextBackend", "VLLMBackend"]


def __getattr__(name: str) -> Any:
    """Import a backend when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
