"""Names in a config: those of our tables, and `module:attribute` of the user's own.

The tables: `TASKS` (bbt.tasks), `METHODS` (bbt.methods), `OPTIMIZERS` (bbt.optimizers), `LOSSES` (bbt.settings),
`METRICS` (bbt.tasks), `OBSERVERS` (bbt.runs.observer) and `BACKENDS` (backends). All but `TASKS`, whose entries are
data, name a part by where it is, so that it is imported when it is asked for and not before.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeAlias

from bbt.errors import ConfigError, unknown

Table: TypeAlias = Mapping[str, tuple[str, str]]
"""By name, where a part is (`module:attribute`), and what it is in a few words."""


def resolved(what: str, name: str, table: Table) -> Any:
    """Find what a name stands for: an entry of the table, or a `module:attribute` itself.

    Raises:
        ConfigError: no such name (the nearest is suggested), or a module or attribute that is not there.
    """
    if ":" not in name and name not in table:
        raise ConfigError(f"{unknown(what, name, table)} Or give module:Name of your own.")
    module, _, attribute = (name if ":" in name else table[name][0]).partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} {name!r} cannot be imported: {error}.") from error
