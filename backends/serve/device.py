"""One thread owns the model: what is asked of it waits in line, and scoring requests that fit are joined.

Populations go through the model in parts. Between them the thread sees who has gone away, and no request makes more
prompts at once than a part has.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from bbt.backend import Backend, Encoded
from bbt.errors import BbtError
from bbt.types import Prompts, Scores

T = TypeVar("T")

Score: TypeAlias = Callable[[Prompts, Any], NDArray[np.floating[Any]]]
"""A backend's scoring of prompts (n, T, H) on encoded rows: label scores (n, B, K) or log-likelihoods (n, B)."""

PART_TOKENS = 65_536
"""Tokens of a part: what keeps a GPU busy (`backends.local.device`), and some seconds of a CPU."""

log = structlog.get_logger("bbt.serve")


class BusyError(Exception):
    """The line is full. In `wait` seconds there should be room."""

    def __init__(self, wait: float) -> None:
        super().__init__("the server is busy")
        self.wait = wait


class ModelError(Exception):
    """The model failed at a request that is sound. How it failed is in the log, and not for the caller."""

    def __init__(self) -> None:
        super().__init__("the model failed; the server's log says how")


@dataclass(eq=False)
class Scoring:
    """A request for the scores of prompts on encoded rows."""

    n: int
    """The number of candidates."""
    prompts: Callable[[slice], Prompts]
    """A function that makes the prompts (n', T, H) of some candidates, on the model's thread."""
    encoded: Encoded
    """The rows to score."""
    score: Score
    """The backend's function that scores them."""
    join: bool = False
    """Whether it may become one population with other requests, which keeps a GPU busy when they are small; the last
    bits of the scores then depend on them."""
    answer: "Future[Scores]" = field(default_factory=Future)
    """The scores (n, B, K), once all parts are computed."""
    parts: list[Scores] = field(default_factory=list)
    """The scores computed so far, in the candidates' order."""
    abandoned: bool = False
    """Whether who waited for the answer has gone away."""

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more, or it has failed."""
        return self.abandoned or self.answer.done()

    def left(self, answer: "asyncio.Future[Scores]") -> None:
        """Take note of whether who waited has gone away."""
        self.abandoned = answer.cancelled()

    def fits(self, other: "Scoring") -> bool:
        """Whether both can be one population."""
        return self.join and other.join and self.encoded is other.encoded and self.score == other.score


@dataclass(eq=False)
class Call:
    """Anything else that is to be done on the model's thread, step by step."""

    steps: Sequence[Callable[[], Any]]
    """What is to be done."""
    counted: bool = False
    """Whether each step gives a list with a result for each row that it has put through the model."""
    answer: "Future[list[Any]]" = field(default_factory=Future)
    """What the steps have returned, once all are done."""
    abandoned: bool = False
    """Whether who waited for the answer has gone away."""

    def left(self, answer: "asyncio.Future[list[Any]]") -> None:
        """Take note of whether who waited has gone away."""
        self.abandoned = answer.cancelled()


class Device:
    """A device runs a backend on a thread of its own, one thing after another.

    `longest_line` requests may wait; a joined population has at most `joined` candidates. `on_scored` is told the
    number of requests and of sequences of each population, and its seconds.
    """

    def __init__(
        self,
        backend: Backend,
        longest_line: int,
        joined: int,
        on_scored: Callable[[int, int, float], None] = lambda requests, sequences, seconds: None,
    ) -> None:
        self.backend = backend
        self._longest_line, self._joined, self._on_scored = longest_line, joined, on_scored
        self._line: deque[Scoring | Call] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_a_job = 0.1
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of requests in line."""
        return len(self._line)

    @property
    def alive(self) -> bool:
        """Whether requests are still taken."""
        return self._thread.is_alive() and not self._closing

    def score(self, scoring: Scoring) -> "asyncio.Future[Scores]":
        """Stand in line for the scores (n, B, K). Cancelling the answer takes the request out of the line, or ends it
        after the part that is being computed.

        Raises:
            BusyError: the line is full.
        """
        self._stand_in_line(scoring)
        answer = asyncio.wrap_future(scoring.answer)
        answer.add_done_callback(scoring.left)
        return answer

    async def call(self, function: Callable[[], T]) -> T:
        """Stand in line for what a function returns on the model's thread.

        Raises:
            BusyError: the line is full.
        """
        (found,) = await self._asked(Call([function]))
        return found  # type: ignore[no-any-return]

    async def rows(self, steps: Sequence[Callable[[], list[T]]]) -> list[T]:
        """Stand in line for the results of rows that several steps put through the model. Cancelling takes the request
        out of the line, or ends it after the step that is under way.

        Raises:
            BusyError: the line is full.
        """
        return [result for results in await self._asked(Call(steps, counted=True)) for result in results]

    def _asked(self, call: Call) -> "asyncio.Future[list[Any]]":
        self._stand_in_line(call)
        answer = asyncio.wrap_future(call.answer)
        answer.add_done_callback(call.left)
        return answer

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _stand_in_line(self, job: Scoring | Call) -> None:
        with self._changed:
            for gone in [other for other in self._line if other.answer.cancelled()]:
                self._line.remove(gone)
            if self._closing or len(self._line) >= self._longest_line:
                raise BusyError(max(1.0, self._seconds_a_job * len(self._line) / 2))
            self._line.append(job)
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            start = time.perf_counter()
            if isinstance(job, Scoring):
                self._score([job, *self._fitting(job)])
            else:
                self._answer(job)
            self._seconds_a_job += 0.1 * (time.perf_counter() - start - self._seconds_a_job)

    def _next(self) -> Scoring | Call | None:
        """Take the first request in line that has not been cancelled; None when the device is closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._line or self._closing)
                if not self._line:
                    return None
                job = self._line.popleft()
                if job.answer.set_running_or_notify_cancel():
                    return job

    def _fitting(self, first: Scoring) -> list[Scoring]:
        """Take those further back in the line that can be one population with the first."""
        chosen, n = [], first.n
        with self._changed:
            for job in list(self._line) if first.join else ():
                if isinstance(job, Scoring) and first.fits(job) and n + job.n <= self._joined:
                    self._line.remove(job)
                    if job.answer.set_running_or_notify_cancel():
                        n += job.n
                        chosen.append(job)
        return chosen

    def _score(self, jobs: list[Scoring]) -> None:
        """Score one population of all jobs, part by part; each job gets its scores."""
        for part in _parts(jobs, max(1, PART_TOKENS // max(1, jobs[0].encoded.n_tokens))):
            self._score_part([(job, some) for job, some in part if not job.over])
        for job in jobs:
            if not job.over:
                job.answer.set_result(np.concatenate(job.parts))
            elif not job.answer.done():
                job.answer.set_exception(CancelledError())

    def _score_part(self, part: list[tuple[Scoring, slice]]) -> None:
        """Score what of a part is sound, and hand the scores to their jobs."""
        sound: list[tuple[Scoring, Prompts]] = []
        for job, some in part:
            try:
                sound.append((job, job.prompts(some)))
            except Exception as error:
                job.answer.set_exception(error)
        if not sound:
            return
        start = time.perf_counter()
        try:
            prompts = np.concatenate([prompts for _, prompts in sound])
            scores = sound[0][0].score(prompts, sound[0][0].encoded)
        except Exception as error:
            for job, _ in sound:
                job.answer.set_exception(_told(error))
            return
        self._on_scored(len(sound), scores.shape[0] * scores.shape[1], time.perf_counter() - start)
        ends = np.cumsum([len(prompts) for _, prompts in sound])[:-1]
        for (job, _), its in zip(sound, np.split(scores, ends), strict=True):
            job.parts.append(its)

    def _answer(self, call: Call) -> None:
        """Take the steps of a call, as long as somebody waits for it."""
        results: list[Any] = []
        for step in call.steps:
            start = time.perf_counter()
            try:
                if call.abandoned:
                    raise CancelledError
                results.append(step())
            except Exception as error:
                call.answer.set_exception(_told(error))
                return
            if call.counted:
                self._on_scored(int(len(results) == 1), len(results[-1]), time.perf_counter() - start)
        call.answer.set_result(results)


def _told(error: Exception) -> Exception:
    """The error that the caller is told: one that is no word about what was asked stays in the log."""
    if isinstance(error, BbtError | CancelledError):
        return error
    log.error("the model failed", exc_info=error)
    return ModelError()


def _parts(jobs: Sequence[Scoring], step: int) -> Iterator[list[tuple[Scoring, slice]]]:
    """Yield the candidates of all jobs in their order, `step` at a time."""
    part: list[tuple[Scoring, slice]] = []
    room = step
    for job in jobs:
        first = 0
        while first < job.n:
            some = slice(first, min(job.n, first + room))
            part.append((job, some))
            first, room = some.stop, room - (some.stop - first)
            if not room:
                yield part
                part, room = [], step
    if part:
        yield part
