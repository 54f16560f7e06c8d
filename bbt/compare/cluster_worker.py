"""One run in a worker of a Ray cluster. A worker makes one run after the other, and keeps the last models open."""

import os
import queue
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from bbt.compare.carried import Files, read_files, write_files
from bbt.compare.job import Job, config_of, run_cell
from bbt.compare.worker import Teller
from bbt.errors import BbtError
from bbt.open_models import open_model

PATIENCE = 60.0
"""The most seconds that a run waits for its folder, which the worker that died with it may hold a moment longer."""


@dataclass(frozen=True)
class Order:
    """What a worker is told of a run."""

    job: dict[str, Any]
    """The fields of its `Job`."""
    mark: str
    """The path of a file that is there if the worker sees the driver's folder of runs."""
    directory: str
    """The directory that the driver was called in, by which relative paths in a config are meant."""
    files: Files
    """What the run's folder holds already."""


@dataclass(frozen=True)
class Ended:
    """What a run has come to."""

    reason: str | None = None
    """Why it did not finish, in a line; empty where its log says it (none: it has finished)."""
    files: Files = field(default_factory=dict)
    """What its folder holds, where the driver does not see that."""
    log: bytes = b""
    """What it has printed, where it did not finish."""


News: TypeAlias = tuple[int, int] | Ended | None
"""What a run tells: that it has begun (none), how much of its total is done, or its end."""


def made(order: Order) -> Iterator[News]:
    """Make a run, and yield what there is to tell of it, its end last."""
    news: queue.SimpleQueue[News] = queue.SimpleQueue()
    yield None
    threading.Thread(target=lambda: news.put(_ended(order, news)), daemon=True).start()
    while True:
        told = news.get()
        yield told
        if isinstance(told, Ended):
            return


def _ended(order: Order, news: "queue.SimpleQueue[News]") -> Ended:
    """Make a run and return its end. It is made in the driver's folder if that is to be seen from here, else in one of
    its own."""
    job = Job(**order.job)
    if Path(order.directory).is_dir():
        os.chdir(order.directory)
    if Path(order.mark).is_file():
        return _tried(job, news)
    with tempfile.TemporaryDirectory(prefix="bbt-run-") as parent:
        folder = Path(parent) / Path(job.folder).name
        write_files(folder, order.files)
        ended = _tried(replace(job, folder=str(folder)), news)
        return replace(ended, files=read_files(folder))


def _tried(job: Job, news: "queue.SimpleQueue[News]") -> Ended:
    """Make a run in its folder; what goes wrong is what it has come to."""
    with tempfile.TemporaryFile() as log, _printing_to(log.fileno()):
        try:
            _wait_for(Path(job.folder))
            backend = open_model(config_of(job).model).backend
            run_cell(job, Teller(lambda done, total: news.put((done, total))), backend)
            return Ended()
        except BbtError as error:
            return Ended(" ".join(str(error).split()), log=_so_far(log))
        except Exception:
            traceback.print_exc()
            return Ended("", log=_so_far(log))


def _so_far(log: Any) -> bytes:
    """What was printed so far."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.seek(0)
    return bytes(log.read())


@contextmanager
def _printing_to(file: int) -> Iterator[None]:
    """A context in which what this process prints, from Python or from C, goes to a file."""
    before = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(file, stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, old in zip((1, 2), before, strict=True):
            os.dup2(old, stream)
            os.close(old)


def _wait_for(folder: Path) -> None:
    """Wait until nobody else holds a run's folder. Whoever still does then is named by the error of the run itself."""
    if (folder / ".lock").is_file():
        with suppress(Timeout), FileLock(folder / ".lock", timeout=PATIENCE):
            pass
