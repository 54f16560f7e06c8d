"""The work of a comparison is its missing runs, which an executor makes, several at a time. One that fails does not
stop the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

from bbt.compare.finished import read
from bbt.compare.plan import Cell
from bbt.errors import RunError


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    cell: Cell
    """The run that was to be made."""
    reason: str
    """Why it did not finish, in a line."""


class Watcher:
    """A watcher that is told how the work goes, from several threads. Override the methods whose news you want."""

    def began(self, cell: Cell) -> None:
        """Hear that a run begins or goes on."""

    def moved(self, cell: Cell, done: int, total: int) -> None:
        """Hear how much of its total a run has done."""

    def ended(self, cell: Cell, failure: Failure | None) -> None:
        """Hear that a run has finished, or failed."""


class Executor(Protocol):
    """The protocol of where runs are made: in processes of this machine, or on a cluster."""

    def run(self, cells: Sequence[Cell], runs: Path, watcher: Watcher) -> list[Failure]:
        """Make the runs of cells, whose folders lie under `runs`, and return those that did not finish. Whatever ends
        this early (Ctrl-C) ends all that it has begun; nothing is lost, since a run's log is its checkpoint."""


def missing(cells: Iterable[Cell], runs: Path) -> tuple[list[Cell], list[Failure]]:
    """The cells that are to be run, and a failure for each that cannot be, since its folder holds another config's
    run."""
    todo, failures = [], []
    for cell in cells:
        try:
            if read(cell, runs) is None:
                todo.append(cell)
        except RunError as error:
            failures.append(Failure(cell, str(error)))
    return todo, failures


def log_of(cell: Cell, runs: Path) -> Path:
    """The file of what a run prints and how it fails, beside its folder; its folder is there afterwards."""
    log = cell.folder(runs).with_name(cell.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def last_line(log: Path, whole: bool) -> str:
    """What a run said last; unless that is the `whole` of it, with the file that holds the rest. Empty if it said
    nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return (lines[-1] + ("" if whole else f" (all of it: {log})")) if lines else ""


@dataclass
class Work:
    """The running of cells."""

    runs: Path
    """The folder of their run folders."""
    executor: Executor
    """What makes the runs, several at a time."""
    watcher: Watcher
    """Who is told how the work goes."""

    def do(self, cells: Sequence[Cell]) -> list[Failure]:
        """Run the cells, one budget after the other (a larger one extends the smaller one's run, if that succeeds)."""
        failures: list[Failure] = []
        for _, of_budget in groupby(cells, key=lambda cell: cell.round):
            failed = {failure.cell.folder(self.runs) for failure in failures}
            todo = [cell for cell in of_budget if cell.folder(self.runs) not in failed]
            failures += self.executor.run(todo, self.runs, self.watcher)
        return failures
