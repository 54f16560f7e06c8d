"""Names in a config: those of our tables, and `module:attribute` of the user's own."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from bbt.errors import ConfigError, unknown


def resolved(what: str, name: str, table: Mapping[str, str]) -> Any:
    """What a name stands for: an entry of the table (name -> `module:attribute`), or a `module:attribute` itself.

    Raises:
        ConfigError: no such name (the nearest is suggested), or a module or attribute that is not there.
    """
    target = name if ":" in name else table.get(name)
    if target is None:
        raise ConfigError(f"{unknown(what, name, table)} Or give module:Name of your own.")
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} {name!r} cannot be imported: {error}.") from error
