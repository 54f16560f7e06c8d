"""A meter reads what calls of a backend cost, of which several may be under way at a time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from bbt.backend import Backend, RemoteBackend, Traffic


@dataclass
class Reading:
    """What a call has cost since the last call ended, or since it began itself if none was under way."""

    traffic: Traffic = field(default_factory=Traffic)
    """What has crossed the wire; nothing where the backend has none."""
    seconds: float = 0.0
    """The seconds in which the backend computed."""


class Meter:
    """A meter of one run's calls of its backend. Over all readings each byte and each second is counted once, also
    where calls overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._traffic, self._time = Traffic(), 0.0

    @contextmanager
    def call(self, backend: Backend) -> Iterator[Reading]:
        """A context for one call of the backend, with the reading that it has when it has ended."""
        reading = Reading()
        with self._lock:
            if not self._under_way:
                self._traffic, self._time = _traffic(backend), time.perf_counter()
            self._under_way += 1
        try:
            yield reading
        finally:
            with self._lock:
                self._under_way -= 1
                traffic, now = _traffic(backend), time.perf_counter()
                spent = {name: count - getattr(self._traffic, name) for name, count in vars(traffic).items()}
                reading.traffic, reading.seconds = Traffic(**spent), now - self._time
                self._traffic, self._time = traffic, now


def _traffic(backend: Backend) -> Traffic:
    return replace(backend.traffic) if isinstance(backend, RemoteBackend) else Traffic()
