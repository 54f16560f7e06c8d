"""A round is one piece of work shared out over endpoints: parts to take, parts under way, results in their order."""

import threading
import time
from statistics import median
from typing import Generic, TypeVar

from bbt.errors import EndpointError

T = TypeVar("T")

SLOW = 3.0
"""A part that takes this many times the median of the others is given to a second endpoint too."""


class Round(Generic[T]):
    """The numbers from 0 to n in parts of `at_once`, whose bounds do not depend on who computes them.

    Endpoints take parts until none is left; whoever has nothing to do takes over what another is slow with, and the
    first result counts.
    """

    def __init__(self, n: int, at_once: int) -> None:
        self._open = [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)][::-1]
        self._under_way: dict[int, tuple[slice, float]] = {}
        self._results: dict[int, T] = {}
        self._n_parts = len(self._open)
        self._seconds: list[float] = []
        self._error: Exception | None = None
        self._last_fault = "none has answered"
        self._changed = threading.Condition()

    def take(self) -> slice | None:
        """The next part, as soon as there is one; None when the round is over."""
        with self._changed:
            while not self._over:
                part = self._open.pop() if self._open else self._slow()
                if part is not None:
                    self._under_way[part.start] = part, time.monotonic()
                    return part
                self._changed.wait(timeout=0.05)
        return None

    def put(self, part: slice, result: T) -> None:
        """Take in a part's result, unless another endpoint's came first."""
        with self._changed:
            if part.start not in self._results:
                self._results[part.start] = result
                _, start = self._under_way.pop(part.start, (part, time.monotonic()))
                self._seconds.append(time.monotonic() - start)
                self._changed.notify_all()

    def give_back(self, part: slice, error: EndpointError) -> None:
        """Take back a part that an endpoint could not do, so that another may."""
        with self._changed:
            self._last_fault = str(error)
            if self._under_way.pop(part.start, None):
                self._open.append(part)
                self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """End the round by a fault that no other endpoint would mend."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def results(self, patience: float) -> list[T]:
        """Wait for all results, and return them in order.

        Raises:
            EndpointError: no part was finished for `patience` seconds.
        """
        with self._changed:
            deadline, done = time.monotonic() + patience, 0
            while not self._over:
                if len(self._results) > done:
                    deadline, done = time.monotonic() + patience, len(self._results)
                if time.monotonic() > deadline:
                    message = f"no endpoint of the pool has answered for {patience:.0f} s; {self._last_fault}"
                    self._error = EndpointError(message)
                self._changed.wait(timeout=deadline - time.monotonic() if self._error is None else 0)
            if self._error is not None:
                raise self._error
            return [self._results[start] for start in sorted(self._results)]

    @property
    def _over(self) -> bool:
        return self._error is not None or len(self._results) == self._n_parts

    def _slow(self) -> slice | None:
        """The part that has been under way for longest, if it is slow."""
        if not self._under_way or not self._seconds:
            return None
        part, start = min(self._under_way.values(), key=lambda running: running[1])
        return part if time.monotonic() - start > SLOW * median(self._seconds) else None
