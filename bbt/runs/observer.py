"""Observers: a run tells them what it does, and never asks them anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbt.errors import ConfigError
from bbt.names import Table, resolved

OBSERVERS: Table = {}
"""Observers of ours by name; so far there are none, and a config names the user's own."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    """Of the total that `Observer.started` was told, and in its unit."""
    train_loss: float
    """The lowest training loss of the last generation, or that of the last step."""
    best_metric: float | None = None
    """The best dev metric so far, in [0, 1] (none: dev has not judged yet)."""


class Observer:
    """Told how a run goes; override what you want to see."""

    def opened(self, folder: Path) -> None:
        """The run has this folder."""

    def started(self, total: int, unit: str) -> None:
        """The method begins: it will do `total` of `unit` (queries, steps, ...)."""

    def progressed(self, progress: Progress) -> None:
        """After each generation of a search, each step of a training."""


class Observers(Observer):
    """Several observers as one, told in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def opened(self, folder: Path) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.opened(folder)

    def started(self, total: int, unit: str) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.started(total, unit)

    def progressed(self, progress: Progress) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.progressed(progress)


def watching(names: Sequence[str], observer: Observer | None) -> Observer:
    """An observer, if there is one, and those that are named as `module:Class`.

    Raises:
        ConfigError: a name that cannot be imported, or that names no observer.
    """
    kinds = [resolved("observer", name, OBSERVERS) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if not (isinstance(kind, type) and issubclass(kind, Observer)):
            raise ConfigError(f"observer {name!r} is no subclass of bbt.Observer.")
    named = [kind() for kind in kinds]
    return Observers([*([observer] if observer else []), *named])
