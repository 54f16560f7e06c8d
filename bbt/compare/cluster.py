"""Runs are made on a Ray cluster: each is a task that asks for its resources, and Ray sees to where it goes.

No file system need be shared. Where a worker sees the folder of the runs it works there, and the run's log is its
checkpoint; elsewhere it is sent what the run's folder holds, works in a folder of its own, and sends back what that
holds in the end.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bbt.cluster import Resources, joined, most_of_a_node
from bbt.compare.carried import read_files, write_files
from bbt.compare.cluster_worker import Ended, Order, made
from bbt.compare.job import Job
from bbt.compare.plan import Cell
from bbt.compare.work import Failure, Watcher, last_line, log_of
from bbt.errors import ConfigError
from bbt.files import write_bytes_atomically

ATTEMPTS = 4
"""How often a run is begun or gone on with before it counts as failed: once, and three times more, as often as Ray by
default tries a task again."""


@dataclass
class RayCluster:
    """The executor whose runs are tasks of a Ray cluster."""

    address: str = "auto"
    """The cluster's address; see `bbt.cluster.join`."""

    def run(self, cells: Sequence[Cell], runs: Path, watcher: Watcher) -> list[Failure]:
        """Make the runs of cells; see `Executor.run`.

        Raises:
            ConfigError: a run that asks for more than any node of the cluster has.
        """
        with joined(self.address) as ray, _marked(runs) as mark:
            _check_room(ray, cells)
            return _Round(ray, runs.absolute(), mark, watcher).make(cells)


@dataclass
class _Attempt:
    """A run that Ray was asked for."""

    cell: Cell
    """The run."""
    number: int = 1
    """The place of the attempt among those at this run, from 1 on."""
    begun: bool = False
    """Whether the run has been heard of."""
    ended: bool = False
    """Whether its end has been heard of."""


class _Round:
    """The runs that are under way on a cluster. What each tells of itself comes one after the other."""

    def __init__(self, ray: Any, runs: Path, mark: Path, watcher: Watcher) -> None:
        self._ray, self._runs, self._mark, self._watcher = ray, runs, mark, watcher
        self._task = ray.remote(max_retries=0)(made)  # tried again here, where a run out of memory is told from others
        self._under_way: dict[Any, _Attempt] = {}
        self._failures: list[Failure] = []

    def make(self, cells: Sequence[Cell]) -> list[Failure]:
        """Make all runs, and return those that did not finish."""
        for cell in cells:
            self._ask_for(_Attempt(cell))
        while self._under_way:
            ready, _ = self._ray.wait(list(self._under_way), timeout=None)
            for told in ready:
                self._hear(told, self._under_way[told])
        return self._failures

    def _ask_for(self, attempt: _Attempt) -> None:
        cell = attempt.cell
        job, folder = Job.of(cell, self._runs), cell.folder(self._runs)
        order = Order(asdict(job), str(self._mark), str(Path.cwd()), read_files(folder))
        self._under_way[self._task.options(name=str(cell), **cell.resources.options()).remote(order)] = attempt

    def _hear(self, told: Any, attempt: _Attempt) -> None:
        """Take in the next thing that a run tells."""
        ray, cell = self._ray, attempt.cell
        try:
            news = ray.get(next(told))
        except StopIteration:
            del self._under_way[told]
            return
        except ray.exceptions.RayTaskError as error:
            self._end(attempt, Ended(reason=" ".join(str(error.cause).split())))
        except ray.exceptions.RayError as error:
            self._lost(told, attempt, error)
        else:
            if not attempt.begun:
                attempt.begun = True
                self._watcher.began(cell)
            if isinstance(news, Ended):
                self._end(attempt, news)
            elif news is not None:
                self._watcher.moved(cell, *news)

    def _lost(self, told: Any, attempt: _Attempt, error: Exception) -> None:
        """Try a run again whose process or node has ended."""
        del self._under_way[told]
        if attempt.ended:
            return
        if attempt.number < ATTEMPTS:
            self._ask_for(_Attempt(attempt.cell, attempt.number + 1, attempt.begun))
            return
        times = f"ended {ATTEMPTS} times before it was done, the last time"
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            reason = f"{times} since its node was out of memory. Ask for more: resources: {{memory: 16GiB}}."
        else:
            reason = f"{times} with its process or node: {_in_short(error)}"
        self._end(attempt, Ended(reason=reason))

    def _end(self, attempt: _Attempt, ended: Ended) -> None:
        """Take in what a run has come to."""
        attempt.ended = True
        cell, log = attempt.cell, log_of(attempt.cell, self._runs)
        write_files(cell.folder(self._runs), ended.files)
        if not attempt.begun:
            self._watcher.began(cell)
        failure = None
        if ended.log and ended.reason is not None:
            write_bytes_atomically(log, ended.log)
        if ended.reason is not None:
            failure = Failure(cell, ended.reason or last_line(log, whole=False))
            self._failures.append(failure)
        self._watcher.ended(cell, failure)


@contextmanager
def _marked(runs: Path) -> Iterator[Path]:
    """A context in which the folder of the runs holds a file by which a worker knows it for the driver's own."""
    runs.mkdir(parents=True, exist_ok=True)
    mark = runs.absolute() / f".cluster-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _check_room(ray: Any, cells: Sequence[Cell]) -> None:
    """Refuse a run that no node has room for, which would wait for ever.

    Raises:
        ConfigError: there is one.
    """
    most = most_of_a_node(ray)
    for wanted, cell in {str(cell.resources): cell for cell in cells}.items():
        if any(amount > most.get(name, 0.0) for name, amount in cell.resources.asked().items()):
            has = ", ".join(f"{name} {most.get(name, 0.0):g}" for name in Resources(gpu=1, memory=1).asked())
            raise ConfigError(
                f"{cell} asks for {wanted}, but no node of the cluster has that; the most that one has is {has}. Lower "
                "the plan's resources, or add a node."
            )


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
