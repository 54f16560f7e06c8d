"""Observers watch a run: it tells them what it does, and never asks them anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbt.errors import ConfigError
from bbt.names import Table, resolved
from bbt.types import Event

OBSERVERS: Table = {
    "mlflow": ("bbt.runs.trackers.mlflow:MLflow", "an MLflow run: losses, dev metrics, costs, table, convergence"),
    "tensorboard": ("bbt.runs.trackers.tensorboard:TensorBoard", "the same as TensorBoard's event files"),
    "wandb": ("bbt.runs.trackers.wandb:WandB", "the same as a run of Weights & Biases, offline too"),
}
"""Our own observers by name, which are trackers; a config may name the user's as `module:Class`."""


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
    """A watcher that is told how a run goes. Override the methods whose news you want.

    They come in this order: configured, opened, then started, progressed and recorded as it happens, and finished. A
    run that is resumed tells from its beginning.
    """

    def configured(self, config: Mapping[str, Any]) -> None:
        """Hear what is to be run: the resolved config, as a run folder's config.yaml holds it."""

    def opened(self, folder: Path) -> None:
        """Hear that the run has this folder; one in memory has none."""

    def started(self, total: int, unit: str) -> None:
        """Hear that the method begins, and will do `total` of `unit` (queries, steps, ...)."""

    def progressed(self, progress: Progress) -> None:
        """Hear how far the run is: after each generation of a search, and after each step of a training."""

    def recorded(self, event: Event) -> None:
        """Hear of an event of the run's log, as a line of `events.jsonl` holds it."""

    def finished(self, result: Mapping[str, Any] | None) -> None:
        """Hear what `result.json` holds of the run; None where it has stopped before its end."""


class Observers(Observer):
    """Several observers as one, which are told in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def configured(self, config: Mapping[str, Any]) -> None:
        """Tell all of them of the config."""
        for observer in self._observers:
            observer.configured(config)

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

    def recorded(self, event: Event) -> None:
        """Tell all of them of the event."""
        for observer in self._observers:
            observer.recorded(event)

    def finished(self, result: Mapping[str, Any] | None) -> None:
        """Tell all of them of the end."""
        for observer in self._observers:
            observer.finished(result)


def watching(names: Sequence[str], observer: Observer | None) -> Observer:
    """One observer that stands for the one given, if any, and for those that are named: ours, or a `module:Class`.

    Raises:
        ConfigError: a name that cannot be imported, or that names no observer; a tracker whose package is missing.
    """
    kinds = [resolved("observer", name, OBSERVERS) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if not (isinstance(kind, type) and issubclass(kind, Observer)):
            raise ConfigError(f"observer {name!r} is no subclass of bbt.Observer.")
    named = [kind() for kind in kinds]
    return Observers([*([observer] if observer else []), *named])
