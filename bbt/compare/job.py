"""A job is one run to be made. How it is made is said here; where, in which process or on which machine, is not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbt import api
from bbt.backend import Backend
from bbt.compare.plan import Cell
from bbt.config import Config, make_config
from bbt.methods import resolved_tree
from bbt.runs.observer import Observer


@dataclass(frozen=True)
class Job:
    """What whoever makes a run is told, as plain values."""

    config: dict[str, Any]
    """The run's config, every value resolved."""
    folder: str
    """The path of the run's folder."""
    budget: int | None
    """The budget in queries (none: as the config says)."""

    @classmethod
    def of(cls, cell: Cell, runs: Path) -> "Job":
        """The job of a cell whose run folder lies under `runs`."""
        return cls(resolved_tree(cell.config), str(cell.folder(runs)), cell.budget)


def run_cell(job: Job, observer: Observer, backend: Backend | None = None) -> None:
    """Make, resume or extend one run, on a backend that is open already or else on the one that the config names.

    Raises:
        BbtError: a run that cannot be made.
    """
    folder = Path(job.folder)
    if (folder / "config.yaml").is_file():
        api.resume(folder, job.budget, observer, backend=backend)
    else:
        _clear(folder)
        api.run(config_of(job), folder.parent, observer, backend)


def config_of(job: Job) -> Config:
    """The run's config."""
    return make_config(job.config)


def _clear(folder: Path) -> None:
    """Remove what is left by a run that was killed before its config was written."""
    if folder.is_dir():
        (folder / "config.yaml.partial").unlink(missing_ok=True)
        folder.rmdir()
