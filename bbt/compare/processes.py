"""Runs are made in processes of this machine: each is one of its own, and several run at a time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bbt.compare.devices import Devices
from bbt.compare.job import Job
from bbt.compare.plan import Cell
from bbt.compare.work import Failure, Watcher, last_line, log_of


@dataclass
class Processes:
    """The executor whose runs are processes of this machine."""

    n_workers: int = 1
    """How many runs go on at a time."""
    devices: Devices = field(default_factory=Devices)
    """The devices that the runs are shared out over."""
    _children: set["subprocess.Popen[str]"] = field(default_factory=set)
    """The processes that are under way."""

    def run(self, cells: Sequence[Cell], runs: Path, watcher: Watcher) -> list[Failure]:
        """Make the runs of cells; see `Executor.run`."""
        with ThreadPoolExecutor(self.n_workers) as pool:
            futures = [pool.submit(self._attend, cell, runs, watcher) for cell in cells]
            try:
                done = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(self._children):
                    child.kill()
                raise
        return [failure for failure in done if failure]

    def _attend(self, cell: Cell, runs: Path, watcher: Watcher) -> Failure | None:
        """Make one run, from beginning to end."""
        watcher.began(cell)
        log = log_of(cell, runs)
        with log.open("w", encoding="utf-8") as errors, self.devices.one() as device:
            code = self._follow(cell, runs, watcher, errors.fileno(), device)
        failure = None if code == 0 else Failure(cell, _reason(code, log))
        if not failure:
            log.unlink()
        watcher.ended(cell, failure)
        return failure

    def _follow(self, cell: Cell, runs: Path, watcher: Watcher, errors: int, device: dict[str, str]) -> int:
        """Start the worker, which sees this device alone, and pass on its progress; returns its exit code."""
        command = [sys.executable, "-m", "bbt.compare.worker"]
        environment = {**os.environ, **cell.resources.environment, **device}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as child:
            self._children.add(child)
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(asdict(Job.of(cell, runs))) + "\n")
                child.stdin.flush()
            except BrokenPipeError:  # it has ended already, and its exit code and log say why
                with suppress(BrokenPipeError):
                    child.stdin.close()
            for line in child.stdout:
                watcher.moved(cell, **json.loads(line))
            code = child.wait()
        self._children.discard(child)
        return code


def _reason(code: int, log: Path) -> str:
    """What the run said last, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
        return f"ended by {name}{memory}"
    return last_line(log, whole=code == 2) or f"exit code {code}"
