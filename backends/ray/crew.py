"""A crew of actors answers questions: whoever is free takes the next one.

One thread hands the questions out, so that callers may be many. An actor that dies is replaced, and what it was asked
goes to another; what one is slow with is asked of an idle one, too, and the first answer counts. Actors for which the
cluster has no room yet join when it has.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from backends.ray.actor import Answer, Question, Ready
from bbt.errors import BackendError, EndpointError

LOG = logging.getLogger(__name__)

SLOW = 3.0
"""A question that takes this many times the median of the last ones is asked of an idle actor, too."""
PARTS = 4
"""A call has that part of the waiting questions which would keep every actor busy so many times: calls get smaller
towards the end, and no actor is left with much to do (guided self-scheduling, Polychronopoulos and Kuck 1987)."""
TICK = 0.2
"""Seconds between two looks at who is slow, and whether anybody answers at all."""
DEATHS = 4
"""A question at which so many actors have died is not asked again."""


@dataclass(eq=False)
class Asked:
    """A question that waits, or is under way."""

    question: Question
    """What is asked."""
    answer: "Future[Answer]" = field(default_factory=Future)
    """Where its answer is to be found."""
    since: float = 0.0
    """The time at which an actor was last asked."""
    n_asked: int = 0
    """How many actors are at it now."""
    n_deaths: int = 0
    """How many actors have died at it; after the first it is asked alone."""


@dataclass(eq=False)
class Member:
    """An actor of the crew."""

    handle: Any
    """Ray's handle of the actor."""
    ready: bool = False
    """Whether its model is loaded."""
    under_way: list[list[Asked]] = field(default_factory=list)
    """What it was asked and has not answered, call by call."""


class Crew:
    """Actors of one model. `hire` makes one, and `raised` are Ray's exceptions: those of a call that the actor itself
    has raised, and those of anything else that goes wrong.

    Raises:
        BackendError: from `first`, what the actors could not be made with; and see `ask`.
    """

    def __init__(self, hire: Callable[[], Any], n: int, raised: tuple[type[Any], type[Any]], patience: float) -> None:
        self._hire, self._n, self._patience = hire, n, patience
        self._of_the_call, self._of_ray = raised
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._members: list[Member] = []
        self._waiting: deque[Asked] = deque()
        self._seconds: deque[float] = deque(maxlen=50)
        self._heard = time.monotonic()
        self._fault = "none is ready"
        self._fatal: Exception | None = None
        self.first: Future[Ready] = Future()
        """What the first actor that is ready tells of itself."""
        threading.Thread(target=self._hand_out, name="crew", daemon=True).start()
        self._events.put(self._gather)

    @property
    def n_ready(self) -> int:
        """The number of actors whose model is loaded."""
        return sum(member.ready for member in list(self._members))

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to questions, in their order.

        Raises:
            EndpointError: no actor has answered for too long.
            BbtError: what the actors' backend itself has raised.
        """
        asked = [Asked(question) for question in questions]
        self._events.put(lambda: self._take(asked))
        try:
            return [one.answer.result() for one in asked]
        except BaseException:
            for one in asked:
                one.answer.cancel()
            raise

    def stop(self) -> None:
        """Let all actors go."""
        self._events.put(None)

    # What follows runs on the crew's own thread.

    def _hand_out(self) -> None:
        looked = time.monotonic()
        while True:
            try:
                event = self._events.get(timeout=TICK)
            except queue.Empty:
                event = _nothing
            if event is None:
                self._members.clear()
                return
            try:
                event()
                if time.monotonic() - looked > TICK:
                    looked = time.monotonic()
                    self._look_around()
                self._serve()
            except Exception as error:  # Ray itself does not work any more
                self._fail(error)

    def _gather(self) -> None:
        for _ in range(self._n):
            self._welcome()

    def _take(self, asked: list[Asked]) -> None:
        if not (self._waiting or any(member.under_way for member in self._members)):
            self._heard = time.monotonic()
        self._waiting.extend(asked)

    def _serve(self) -> None:
        """Give the actors that are free what waits. Where much waits, each is given several questions in a call, which
        costs less, and the next call before it has answered, so that it does not stand idle in between."""
        while self._waiting:
            ready = [member for member in self._members if member.ready]
            free = min(ready, key=lambda member: len(member.under_way), default=None)
            most = 2 if len(self._waiting) > len(ready) else 1
            if free is None or len(free.under_way) >= most:
                if self._fatal:
                    self._fail(self._fatal)
                return
            batch = self._next(max(1, len(self._waiting) // (PARTS * len(ready))))
            if batch:
                self._put(free, batch)

    def _next(self, n: int) -> list[Asked]:
        """The next questions, n at most, that are still to be answered."""
        batch: list[Asked] = []
        while self._waiting and len(batch) < n and not (batch and self._waiting[0].n_deaths):
            asked = self._waiting.popleft()
            if not asked.answer.done():
                batch.append(asked)
                n = 1 if asked.n_deaths else n
        return batch

    def _put(self, member: Member, batch: list[Asked]) -> None:
        """Ask an actor."""
        member.under_way.append(batch)
        for asked in batch:
            asked.since, asked.n_asked = time.monotonic(), asked.n_asked + 1
        answers = member.handle.answers.remote([asked.question for asked in batch])
        self._when_done(answers, lambda done: self._answered(member, batch, done))

    def _when_done(self, reference: Any, then: Callable[["Future[Any]"], None]) -> None:
        reference.future().add_done_callback(lambda done: self._events.put(lambda: then(done)))

    def _answered(self, member: Member, batch: list[Asked], done: "Future[Any]") -> None:
        """Take in what an actor's call has come to."""
        error = done.exception()
        if error is not None and not isinstance(error, self._of_the_call):
            self._lost(member, error)
            return
        member.under_way = [other for other in member.under_way if other is not batch]
        self._heard = time.monotonic()
        self._seconds.append((self._heard - batch[0].since) / len(batch))
        for asked, answer in zip(batch, done.result() if error is None else [_cause(error)] * len(batch), strict=True):
            asked.n_asked -= 1
            _settle(asked.answer, answer)

    def _lost(self, member: Member, error: BaseException) -> None:
        """Replace an actor that has died, and ask others what it was asked."""
        self._fault = " ".join(str(error).split())[:300]
        if member not in self._members:
            return
        LOG.warning("an actor has died and is replaced: %s", self._fault)
        self._members.remove(member)
        first, calls = member.under_way[:1], member.under_way
        for asked in reversed([asked for batch in calls for asked in batch]):
            asked.n_asked -= 1
            asked.n_deaths += any(asked in batch for batch in first)  # what it was at; the rest had not begun
            if asked.n_deaths >= DEATHS:
                message = f"{DEATHS} actors have died at the same candidates, the last one so: {self._fault}"
                _settle(asked.answer, BackendError(message))
            elif not asked.n_asked:
                self._waiting.appendleft(asked)
        self._welcome()

    def _welcome(self) -> None:
        """Hire an actor, which is a member that is asked nothing until its model is loaded."""
        member = Member(self._hire())
        self._members.append(member)
        self._when_done(member.handle.ready.remote(), lambda done: self._arrived(member, done))

    def _arrived(self, member: Member, done: "Future[Ready]") -> None:
        error = done.exception()
        if error is None:
            self._admit(member, done.result())
        elif isinstance(error, self._of_the_call):
            self._turn_away(member, _cause(error))
        else:
            lost = partial(self._lost, member, error)
            threading.Timer(TICK, self._events.put, [lost]).start()  # a node on which nothing starts is given a pause

    def _admit(self, member: Member, ready: Ready) -> None:
        """Let an actor work, whose model must be that of the others."""
        self._heard = time.monotonic()
        _settle(self.first, ready)
        if self.first.exception():  # nobody waits any more
            return
        model, its = self.first.result().info, ready.info
        if its.fingerprint != model.fingerprint:
            self._turn_away(
                member,
                BackendError(
                    f"the actors must hold one model: one has {its.name} (weights {its.fingerprint}), another "
                    f"{model.name} (weights {model.fingerprint})."
                ),
            )
            return
        member.ready = True

    def _turn_away(self, member: Member, error: Exception) -> None:
        """Go on without an actor whose model does not load; where no actor's does, that is the crew's end."""
        self._members.remove(member)
        if self._members:
            LOG.warning("an actor is left out: %s", error)
            return
        self._fatal = error
        self._fail(error)

    def _look_around(self) -> None:
        """Ask idle actors what others are slow with, and give up where nobody answers at all."""
        now = time.monotonic()
        under_way = {asked for member in self._members for batch in member.under_way for asked in batch}
        if (self._waiting or under_way or not self.first.done()) and now - self._heard > self._patience:
            message = f"no actor has answered for {self._patience:.0f} s; {self._fault}"
            self._fail(EndpointError(message))
        if self._waiting or not self._seconds:
            return
        slow = SLOW * median(self._seconds)
        late = sorted((one for one in under_way if one.n_asked == 1 and not one.answer.done()), key=_since)
        idle = [member for member in self._members if member.ready and not member.under_way]
        for member, asked in zip(idle, late, strict=False):
            if now - asked.since > max(slow, TICK):
                began = asked.since
                self._put(member, [asked])
                asked.since = began

    def _fail(self, error: Exception) -> None:
        """End everything that waits or is under way by an error."""
        self._heard = time.monotonic()
        under_way = (asked for member in self._members for batch in member.under_way for asked in batch)
        waiting = [*self._waiting, *under_way]
        self._waiting.clear()
        _settle(self.first, error)
        for asked in waiting:
            _settle(asked.answer, error)


def _nothing() -> None:
    pass


def _since(asked: Asked) -> float:
    return asked.since


def _settle(future: "Future[Any]", outcome: Any) -> None:
    """Give a future its result or its error, unless it has one or was cancelled."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _cause(error: Any) -> Exception:
    """The error that a call itself has raised, without what Ray has put around it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
