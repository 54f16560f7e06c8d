"""Run folders. The log is the checkpoint: optimizers are deterministic given their seed and losses, so replaying
`events.jsonl` restores a run bit for bit, without a query.

    runs/<name>/config.yaml          the resolved configuration
                events.jsonl         one line an event, flushed to disk as it happens
                prompt.safetensors   the best prompt by dev, with its provenance
                result.json          the outcome on the test set
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from bbt.errors import RunError
from bbt.types import Event, Losses

PACKAGES = ("bbt-prompt", "numpy", "torch", "transformers", "cma", "nevergrad", "scikit-learn")


class EventLog:
    """Append-only events in a file (or in memory, without a path), recalled in order when a run is resumed."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.events: list[Event] = []
        self._complete: int | None = None  # bytes of complete lines, where a torn one follows them
        if path and path.exists():
            self.events, self._complete = _read_events(path)
        self._to_recall = deque(self.events)

    def recall(self, kind: str, **expected: Any) -> Event | None:
        """The next recorded event, or None when the record is used up. Extensions of the budget are skipped.

        Raises:
            RunError: what was recorded is not what the run would do now.
        """
        while self._to_recall and self._to_recall[0]["event"] in ("extend", "result"):
            self._to_recall.popleft()
        if not self._to_recall:
            return None
        event = self._to_recall.popleft()
        wanted = {"event": kind, **expected}
        for key, value in wanted.items():
            if event.get(key) != value:
                raise RunError(
                    f"cannot replay event {self.events.index(event)} of {self._path}: {key} was "
                    f"{event.get(key)!r}, is now {value!r}. The model, the data or a library has changed; start "
                    "a new run."
                )
        return event

    def forget(self) -> None:
        """Drop the recorded events that were not recalled: the run begins again after those that were."""
        if self._to_recall:
            del self.events[len(self.events) - len(self._to_recall) :]
            self._to_recall.clear()
            if self._path:
                write_atomically(self._path, "".join(json.dumps(event) + "\n" for event in self.events))
                self._complete = None

    @property
    def replaying(self) -> bool:
        """Whether recorded events are left."""
        return bool(self._to_recall)

    def append(self, event: Event) -> None:
        """Write one event and see it on disk."""
        self.events.append(event)
        if self._path:
            if self._complete is not None:
                os.truncate(self._path, self._complete)
                self._complete = None
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(event) + "\n")
                handle.flush()
                os.fsync(handle.fileno())

    def of(self, kind: str) -> list[Event]:
        """All events of one kind."""
        return [event for event in self.events if event["event"] == kind]


def _read_events(path: Path) -> tuple[list[Event], int | None]:
    """Events up to a torn last line, and where that line begins, if there is one."""
    raw = path.read_bytes()
    complete = raw.rfind(b"\n") + 1
    try:
        events = [json.loads(line) for line in raw[:complete].splitlines()]
    except ValueError as error:
        raise RunError(f"{path} is damaged before its last line: {error}.") from error
    return events, complete if complete < len(raw) else None


class RunFolder:
    """One run's folder; `hold` it for one process to write in, or only read.

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
        """A new folder `name`, or `name-2`, `name-3`, ... where that is taken."""
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
        """Let other processes have it."""
        self._lock.release()

    def discard(self) -> None:
        """Remove a run that never began."""
        self.close()
        shutil.rmtree(self.path)

    def write_result(self, result: dict[str, Any]) -> None:
        """Keep the outcome in the log and in `result.json`."""
        self.log.append({"event": "result", **result})
        write_result(self.path, result)


def read_result(folder: RunFolder) -> dict[str, Any]:
    """The run's latest outcome.

    Raises:
        RunError: it has not finished.
    """
    results = folder.log.of("result")
    if not results:
        spent = max((event["ledger"]["train_queries"] for event in folder.log.of("generation")), default=0)
        raise RunError(f"{folder.path} has not finished ({spent} queries so far): bbt resume {folder.path}.")
    return {key: value for key, value in results[-1].items() if key != "event"}


def run_summaries(runs: Path) -> list[tuple[str, str]]:
    """Name and state of every run folder under `runs`."""
    rows = []
    for config in sorted(runs.glob("*/config.yaml")):
        result = config.parent / "result.json"
        if result.is_file():
            facts = json.loads(result.read_text(encoding="utf-8"))
            tuned = " ".join(f"{k} {100 * v:.2f}" for k, v in facts["test"]["tuned"].items())
            about = f"{facts['task']} · {facts['model']} · {facts['cost']['train_queries']} queries · test {tuned}"
        else:
            about = "not finished"
        rows.append((config.parent.name, about))
    return rows


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """`result.json`."""
    write_atomically(folder / "result.json", json.dumps(result, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def encode_losses(losses: Losses) -> list[float | None]:
    """For JSON: exact, +inf as null."""
    return [loss if math.isfinite(loss) else None for loss in losses.tolist()]


def decode_losses(values: Sequence[float | None]) -> Losses:
    """Back from JSON."""
    return np.array([math.inf if value is None else value for value in values], dtype=np.float64)


def environment() -> dict[str, Any]:
    """Versions, platform and commit: what a number needs to be made again."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit of the source tree that bbt runs from, with + where it has changes; None where it is no tree."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
