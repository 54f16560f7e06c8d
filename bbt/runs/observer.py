"""Observers watch a run: it tells them what it does, and never asks them anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbt.errors import ConfigError
from bbt.names import Table, resolved

OBSERVERS: Table = {}
"""Our own observers by name; so far there are none, and a config names the user's."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    done: int
    """How much is done of the total that `Observer.started` was told, in its unit."""
    train_loss: float
    """The lowest training loss of the last generation, or that of the last step."""
    best_metric: float | None = None
    """The best dev metric so far, in [0, 1] (none: dev has not judged yet)."""


class Observer:
    """A watcher that is told how a run goes. Override the methods whose news you want."""

    def opened(self, folder: Path) -> None:
        """Hear that the run has this folder."""

    def started(self, total: int, unit: str) -> None:
        """Hear that the method begins, and will do `total` of `unit` (queries, steps, ...)."""

    def progressed(self, progress: Progress) -> None:
        """Hear how far the run is: after each generation of a search, and after each step of a training."""


class Observers(Observer):
    """Several observers as one, which are told in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def opened(self, folder: Path) -> None:
        """Tell all of them of the folder."""
        for observer in self._observers:
            observer.opened(folder)

    def started(self, total: int, unit: str) -> None:
        """Tell all of them of the beginning."""
        for observer in self._observers:
            observer.started(total, unit)

    def progressed(self, progress: Progress) -> None:
        """Tell all of them of the progress."""
        for observer in self._observers:
            observer.progressed(progress)


def watching(names: Sequence[str], observer: Observer | None) -> Observer:
    """One observer that stands for the one given, if any, and for those that are named as `module:Class`.

    Raises:
        ConfigError: a name that cannot be imported, or that names no observer.
    """
    kinds = [resolved("observer", name, OBSERVERS) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if not (isinstance(kind, type) and issubclass(kind, Observer)):
            raise ConfigError(f"observer {name!r} is no subclass of bbt.Observer.")
    named = [kind() for kind in kinds]
    return Observers([*([observer] if observer else []), *named])
