"""Progress of a comparison: a bar over all runs, and one for each that is under way."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bbt.compare.plan import Cell
from bbt.compare.work import Failure, Watcher


class Bars(Watcher):
    """Bars on a terminal; elsewhere a line when a run ends."""

    def __init__(self, total: int) -> None:
        self._console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._all = self._progress.add_task("all runs", total=total)
        self._running: dict[Cell, TaskID] = {}
        self._total, self._done = total, 0

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def began(self, cell: Cell) -> None:
        """Give the run a bar of its own."""
        self._running[cell] = self._progress.add_task(str(cell), total=None)

    def moved(self, cell: Cell, done: int, total: int) -> None:
        """Move the run's bar."""
        self._progress.update(self._running[cell], completed=done, total=total)

    def ended(self, cell: Cell, failure: Failure | None) -> None:
        """Remove the run's bar, move that over all runs, and say how the run ended."""
        self._done += 1
        self._progress.remove_task(self._running.pop(cell))
        self._progress.advance(self._all)
        outcome = f"failed: {failure.reason}" if failure else "done"
        self._console.print(
            f"[{self._done}/{self._total}] {cell}: {outcome}", markup=False, highlight=False, soft_wrap=True
        )
