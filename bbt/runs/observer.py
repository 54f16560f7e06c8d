"""Who watches a run: told what it does, never asked."""

from dataclasses import dataclass
from pathlib import Path


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
