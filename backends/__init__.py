"""Models behind the `Backend` protocol, imported only when one is asked for.

To add a backend, write a class with the members of `bbt.backend.Backend` and name it in `BACKENDS`; a
`module:Class` of the user's own is accepted as it is.
"""

from inspect import signature
from typing import Any, cast

from bbt.backend import Backend
from bbt.errors import ConfigError
from bbt.names import resolved

BACKENDS = {
    "local": "backends.local:LocalBackend",
    "http": "backends.http:HttpBackend",
    "pool": "backends.pool:PoolBackend",
    "text-api": "backends.openai:TextBackend",
    "vllm": "backends.openai:VLLMBackend",
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
