"""Models behind the `Backend` protocol, imported only when one is asked for.

To add a backend, write a class with the members of `bbt.backend.Backend` and name it in `BACKENDS`; a
`module:Class` of the user's own is accepted as it is.
"""

from inspect import signature
from typing import Any, cast

from bbt.backend import Backend
from bbt.errors import ConfigError
from bbt.names import Table, resolved

BACKENDS: Table = {
    "local": ("backends.local:LocalBackend", "a model on this machine: bundled, a folder, or of the hub"),
    "http": ("backends.http:HttpBackend", "a model behind bbt serve"),
    "pool": ("backends.pool:PoolBackend", "several endpoints of one model, as one"),
    "ray": ("backends.ray:RayBackend", "any backend of these in actors of a Ray cluster"),
    "text-api": ("backends.openai:TextBackend", "an OpenAI-compatible API that takes text: prompts of words"),
    "vllm": ("backends.openai:VLLMBackend", "a causal LM behind vLLM, sent embeddings"),
}


def load_backend(name: str, **options: Any) -> Backend:
    """A backend by name or `module:Class`, with its own options.

    Raises:
        ConfigError: no such backend, or options that it does not take.
    """
    factory = resolved("backend", name, BACKENDS)
    takes = signature(factory)
    try:
        takes.bind(**options)
    except TypeError as error:
        raise ConfigError(f"backend {name!r}: {error}. Its options: {', '.join(takes.parameters)}.") from error
    return cast(Backend, factory(**options))


__all__ = ["BACKENDS", "load_backend"]
