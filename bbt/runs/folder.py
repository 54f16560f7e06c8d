"""Run folders: what a run keeps on disk.

runs/<name>/config.yaml          the resolved configuration
            events.jsonl         one line an event, written as it happens
            prompt.safetensors   the best prompt by dev, with its provenance
            outputs.jsonl        the answers on the test rows, beside the gold labels or the references
            result.json          the outcome on the test set
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bbt.errors import ConfigError, RunError
from bbt.files import write_atomically
from bbt.runs.log import EventLog

OUTPUTS = "outputs.jsonl"
"""The file of a run folder that holds the answers on the test rows."""


class RunFolder:
    """One run's folder. With `hold` this process alone may write in it until it is closed; without, it is only read.

    Raises:
        RunError: another process holds it, or it is not a run.
    """

    def __init__(self, path: Path, hold: bool = True) -> None:
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path} is not a run folder (no config.yaml in it). `bbt ls runs` lists them.")
        self.path = path
        self._lock = FileLock(path / ".lock")
        if hold:
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise RunError(f"{path} is in use by another process.") from error
        self.log = EventLog(path / "events.jsonl")

    @classmethod
    def create(cls, parent: Path, name: str, config_yaml: str) -> "RunFolder":
        """Make a new folder `name`, or `name-2`, `name-3`, ... where that is taken. A name may have parts: a/b.

        Raises:
            ConfigError: a name that leads out of `parent`, or that no folder can have.
        """
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
            raise ConfigError(
                f"name: {name!r} is no name of a run folder in {parent}. Give a word, or several with / between them "
                "(a/b), without .. and not from the root; --runs says where the folder of all runs is."
            )
        for number in range(1, 10_000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            write_atomically(path / "config.yaml", config_yaml)
            return cls(path)
        raise RunError(f"{parent} holds 9,999 runs named {name}.")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until the log is on disk, and let other processes hold the folder."""
        try:
            self.log.settle()
        finally:
            self._lock.release()

    def discard(self, runs: Path) -> None:
        """Remove a run that never began, and the folders between it and `runs` that it leaves empty."""
        self.close()
        shutil.rmtree(self.path)
        for folder in self.path.relative_to(runs).parents[:-1]:
            with suppress(OSError):  # a folder that holds another run stays
                (runs / folder).rmdir()

    def write_result(self, result: dict[str, Any]) -> None:
        """Keep the outcome in the log and in `result.json`."""
        self.log.append({"event": "result", **result})
        self.log.settle()
        write_result(self.path, result)


def read_result(folder: RunFolder) -> dict[str, Any]:
    """Read the run's latest outcome.

    Raises:
        RunError: it has not finished.
    """
    results = folder.log.of("result")
    if not results:
        spent = max((event["ledger"]["train_queries"] for event in folder.log.of("generation")), default=0)
        raise RunError(f"{folder.path} has not finished ({spent} queries so far): bbt resume {folder.path}.")
    return {key: value for key, value in results[-1].items() if key != "event"}


def run_summaries(runs: Path) -> list[tuple[str, str]]:
    """The name and the state of every run folder under `runs`, at any depth."""
    rows = []
    for config in sorted(runs.rglob("config.yaml")):
        result = config.parent / "result.json"
        if result.is_file():
            facts = json.loads(result.read_text(encoding="utf-8"))
            tuned = " ".join(f"{k} {100 * v:.2f}" for k, v in facts["test"]["tuned"].items())
            about = f"{facts['task']} · {facts['model']} · {facts['cost']['train_queries']} queries · test {tuned}"
        else:
            about = "not finished"
        rows.append((config.parent.relative_to(runs).as_posix(), about))
    return rows


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write a result into the folder as `result.json`."""
    write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n")
