"""The work of a comparison is its missing runs: each is a process of one thread, and several run at a time. One that
fails does not stop the others."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from bbt.compare.devices import Devices
from bbt.compare.finished import read
from bbt.compare.plan import Cell
from bbt.errors import RunError
from bbt.methods import resolved_tree

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


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


@dataclass
class Work:
    """The running of cells, several at a time."""

    runs: Path
    """The folder of their run folders."""
    n_workers: int
    """How many runs go on at a time."""
    watcher: Watcher
    """Who is told how the work goes."""
    devices: Devices = field(default_factory=Devices)
    """The devices that the runs are shared out over."""
    _children: set["subprocess.Popen[str]"] = field(default_factory=set)
    """The processes that are under way."""

    def do(self, cells: Sequence[Cell]) -> list[Failure]:
        """Run the cells, one budget after the other (a larger one extends the smaller one's run, if that succeeds)."""
        failures: list[Failure] = []
        for _, of_budget in groupby(cells, key=lambda cell: cell.round):
            failed = {failure.cell.folder(self.runs) for failure in failures}
            failures += self._at_once([cell for cell in of_budget if cell.folder(self.runs) not in failed])
        return failures

    def _at_once(self, cells: list[Cell]) -> list[Failure]:
        with ThreadPoolExecutor(self.n_workers) as pool:
            futures = [pool.submit(self._attend, cell) for cell in cells]
            try:
                done = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(self._children):
                    child.kill()  # nothing is lost: its log is its checkpoint
                raise
        return [failure for failure in done if failure]

    def _attend(self, cell: Cell) -> Failure | None:
        """Make one run, from beginning to end."""
        self.watcher.began(cell)
        log = cell.folder(self.runs).with_name(cell.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors, self.devices.one() as device:
            code = self._follow(cell, errors.fileno(), device)
        failure = None if code == 0 else Failure(cell, _reason(code, log))
        if not failure:
            log.unlink()
        self.watcher.ended(cell, failure)
        return failure

    def _follow(self, cell: Cell, errors: int, device: dict[str, str]) -> int:
        """Start the worker and pass on its progress; returns its exit code."""
        job = {"config": resolved_tree(cell.config), "folder": str(cell.folder(self.runs))}
        command = [sys.executable, "-m", "bbt.compare.worker"]
        environment = {**os.environ, **ONE_THREAD, **device}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as child:
            self._children.add(child)
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps({**job, "budget": cell.budget}) + "\n")
                child.stdin.flush()
            except BrokenPipeError:  # it has ended already, and its exit code and log say why
                with suppress(BrokenPipeError):
                    child.stdin.close()
            for line in child.stdout:
                self.watcher.moved(cell, **json.loads(line))
            code = child.wait()
        self._children.discard(child)
        return code


def _reason(code: int, log: Path) -> str:
    """What the run said last, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    more = "" if code == 2 else f" (all of it: {log})"
    return (lines[-1] if lines else f"exit code {code}") + more
