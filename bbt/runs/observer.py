"""Who watches a run: told what it does, never asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbt.names import resolved


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of its total, the last training loss, and the best dev metric so far."""

    done: int
    train_loss: float
    best_metric: float | None = None


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
        ConfigError: a name that cannot be imported.
    """
    named = [resolved("observer", name, {})() for name in names]
    return Observers([*([observer] if observer else []), *named])
