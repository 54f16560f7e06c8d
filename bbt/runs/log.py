"""The event log of a run is its checkpoint: optimizers are deterministic given their seed and losses, so that replaying
the log restores a run bit for bit, without a query."""

import base64
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bbt.errors import RunError
from bbt.files import write_atomically
from bbt.types import Event, Losses, Scores


class EventLog:
    """Events in a file (or in memory, without a path), which are only ever appended, and are recalled in order when a
    run is resumed.

    An event is in the file when `append` returns, so that it outlives the process. That it is on disk, which may take
    as long as an evaluation, is waited for before the next event is written: a power cut may take the last event, and
    nothing else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.events: list[Event] = []
        self._complete: int | None = None  # bytes of complete lines, where a torn one follows them
        if path and path.exists():
            self.events, self._complete = _read_events(path)
        self._to_recall = deque(self.events)
        self._beside: ThreadPoolExecutor | None = None  # waits for the disk
        self._settling: Future[None] | None = None
        self.listener: Callable[[Event], None] = lambda event: None  # hears of each event, recalled or new
        self.witness: Callable[[Event], Event] = lambda event: event  # adds facts to a new event

    def recall(self, kind: str, **expected: Any) -> Event | None:
        """Return the next recorded event, or None when the record is used up. Extensions of the budget are skipped.

        Raises:
            RunError: what was recorded is not what the run would do now.
        """
        if self.upcoming is None:
            return None
        event = self._to_recall.popleft()
        wanted = {"event": kind, **expected}
        for key, value in wanted.items():
            if event.get(key) != value:
                raise RunError(
                    f"cannot replay event {self.events.index(event)} of {self.path}: {key} was "
                    f"{event.get(key)!r}, is now {value!r}. The model, the data or a library has changed; start "
                    "a new run."
                )
        self.listener(event)
        return event

    def forget(self) -> None:
        """Drop the recorded events that were not recalled: the run begins again after those that were."""
        if self._to_recall:
            del self.events[len(self.events) - len(self._to_recall) :]
            self._to_recall.clear()
            if self.path:
                self.settle()
                write_atomically(self.path, "".join(json.dumps(event) + "\n" for event in self.events))
                self._complete = None

    @property
    def upcoming(self) -> str | None:
        """The kind of the next recorded event; None when the record is used up. Extensions are skipped."""
        while self._to_recall and self._to_recall[0]["event"] in ("extend", "result"):
            self._to_recall.popleft()
        return self._to_recall[0]["event"] if self._to_recall else None

    def peek(self, key: str) -> Any:
        """Return what the next recorded event has under a key, without recalling it; None where it has nothing."""
        return self._to_recall[0].get(key) if self.upcoming else None

    def append(self, event: Event) -> None:
        """Write one event, when those before it are on disk.

        Raises:
            OSError: a full disk, or a folder that cannot be written to; says how to go on.
        """
        event = self.witness(event)
        self.settle()
        self.events.append(event)
        if self.path:
            with self._sayable(self.path):
                self._write(self.path, event)
        self.listener(event)

    def settle(self) -> None:
        """Wait until all that was written is on disk.

        Raises:
            OSError: it does not get there; says how to go on.
        """
        settling, self._settling = self._settling, None
        if settling and self.path:
            with self._sayable(self.path):
                settling.result()

    @contextmanager
    def _sayable(self, path: Path) -> Iterator[None]:
        """A context in which an error of the file says how to go on."""
        try:
            yield
        except OSError as error:
            what_to_do = f"Mend that, then bbt resume {path.parent}."
            raise OSError(f"cannot write to {path}: {error}. {what_to_do}") from error

    def _write(self, path: Path, event: Event) -> None:
        if self._complete is not None:
            os.truncate(path, self._complete)
            self._complete = None
        with ExitStack() as stack:
            handle = stack.enter_context(path.open("a", encoding="utf-8"))
            handle.write(json.dumps(event) + "\n")
            handle.flush()
            stack.pop_all()  # the file is closed beside
        self._beside = self._beside or ThreadPoolExecutor(1, thread_name_prefix="log")
        self._settling = self._beside.submit(_settle, handle)

    def of(self, kind: str) -> list[Event]:
        """All events of one kind, in their order."""
        return [event for event in self.events if event["event"] == kind]


def _settle(handle: TextIO) -> None:
    """See on disk what was written, and close the file."""
    with handle:
        os.fsync(handle.fileno())


def _read_events(path: Path) -> tuple[list[Event], int | None]:
    """Read the events up to a torn last line, and the byte where that line begins, if there is one."""
    raw = path.read_bytes()
    complete = raw.rfind(b"\n") + 1
    try:
        events = [json.loads(line) for line in raw[:complete].splitlines()]
    except ValueError as error:
        raise RunError(f"{path} is damaged before its last line: {error}.") from error
    return events, complete if complete < len(raw) else None


def encode_losses(losses: Losses) -> list[float | None]:
    """Losses (n,) as JSON numbers, exact; +inf becomes null."""
    return [loss if math.isfinite(loss) else None for loss in losses.tolist()]


def decode_losses(values: Sequence[float | None]) -> Losses:
    """Losses (n,) from what `encode_losses` made of them."""
    return np.array([math.inf if value is None else value for value in values], dtype=np.float64)


def encode_scores(scores: Scores) -> str:
    """Label scores (n, B, K), less each row's mean, as text: base64 of float16, little-endian. What is not finite stays
    so."""
    with np.errstate(invalid="ignore", over="ignore"):
        centred = scores - scores.mean(axis=2, keepdims=True, dtype=np.float64)
        return base64.b64encode(centred.astype("<f2").tobytes()).decode()


def decode_scores(text: str, n: int, n_rows: int) -> Scores:
    """Label scores (n, B, K) of n candidates on `n_rows` rows from what `encode_scores` made of them."""
    values = np.frombuffer(base64.b64decode(text), dtype="<f2")
    return values.astype(np.float64).reshape(n, n_rows, -1)
