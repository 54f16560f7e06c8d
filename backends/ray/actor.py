"""An actor holds a backend in a process of its own, on whichever node Ray has put it."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backends import load_backend
from backends.ray.offers import OFFERS
from bbt.backend import DeviceBackend, Encoded, EncodedPairs, ModelInfo, RemoteBackend, Traffic

KEPT = 32
"""The sets of rows that an actor keeps encoded; a run asks about six or so. One that it has let go it encodes again."""


@dataclass(frozen=True)
class Ready:
    """What an actor tells of itself when its model is loaded."""

    info: ModelInfo
    """Facts about the model."""
    offers: tuple[str, ...]
    """The names of the capabilities (`OFFERS`) that its backend has."""


@dataclass(frozen=True)
class RowsAsked:
    """The rows that a question is about."""

    key: str
    """A name that no other rows have."""
    how: str
    """The name of the backend's method that encodes them."""
    arguments: Sequence[Any]
    """A reference to that method's arguments, in a list so that Ray does not fetch them with every question."""


@dataclass(frozen=True)
class Question:
    """A call of the backend."""

    method: str
    """The name of the backend's method, or `counts` for what the rows come to."""
    before: tuple[Any, ...] = ()
    """Its arguments before the encoded rows."""
    rows: RowsAsked | None = None
    """The rows (none: the method takes none)."""
    after: tuple[Any, ...] = ()
    """Its arguments after the encoded rows."""

    @property
    def n_bytes(self) -> int:
        """The bytes of the arrays that travel with it."""
        return sum(value.nbytes for value in (*self.before, *self.after) if isinstance(value, np.ndarray))


@dataclass(frozen=True)
class Counts:
    """What rows come to when they are encoded."""

    n_examples: int
    """The number of rows B."""
    n_tokens: int
    """The number of tokens of all rows together, prompt tokens included."""
    n_truncated: int
    """The number of rows whose text was cut to fit the model."""
    n_target_tokens: Any = None
    """(B,) the number of tokens of each row's target, where the rows have targets."""


@dataclass(frozen=True)
class Answer:
    """What a question has come to."""

    value: Any
    """What the backend's method returned."""
    traffic: Traffic
    """What the actor's own backend has exchanged for it, where that is behind a wire itself."""


class Actor:
    """The backend, which is loaded when it is first asked for anything, so that an error in loading it is told as what
    it is."""

    def __init__(self, backend: str, model: str, options: Mapping[str, Any], directory: str) -> None:
        if os.path.isdir(directory):  # by which relative paths are meant, where this node has it
            os.chdir(directory)
        self._open: Callable[[], Any] = lambda: load_backend(backend, model=model, **options)
        self._backend: Any = None
        self._encoded: OrderedDict[str, Encoded] = OrderedDict()

    def ready(self) -> Ready:
        """Load the model, and tell what it is.

        Raises:
            BbtError: it cannot be loaded.
        """
        backend = self.backend
        return Ready(
            backend.info, tuple(name for name, offer in OFFERS.items() if isinstance(backend, offer.capability))
        )

    def answers(self, questions: Sequence[Question]) -> list[Answer | Exception]:
        """Put questions to the backend, one after the other; what it raises at one is that one's answer."""
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Answer | Exception:
        try:
            before, value, after = self._traffic(), self._value(question), self._traffic()
        except Exception as error:
            return error
        return Answer(value, Traffic(**{name: getattr(after, name) - getattr(before, name) for name in vars(before)}))

    @property
    def backend(self) -> Any:
        """The backend, loaded once."""
        if self._backend is None:
            self._backend = self._open()
        return self._backend

    def _value(self, question: Question) -> Any:
        if question.method == "peak_memory_mb":
            return self.backend.peak_memory_mb() if isinstance(self.backend, DeviceBackend) else None
        rows = [] if question.rows is None else [self._rows(question.rows)]
        if question.method == "counts":
            (found,) = rows
            targets = np.asarray(found.n_target_tokens) if isinstance(found, EncodedPairs) else None
            return Counts(found.n_examples, found.n_tokens, found.n_truncated, targets)
        return getattr(self.backend, question.method)(*question.before, *rows, *question.after)

    def _rows(self, asked: RowsAsked) -> Encoded:
        """The rows as the backend has encoded them, now or before."""
        import ray

        if asked.key not in self._encoded:
            (arguments,) = ray.get(list(asked.arguments))
            self._encoded[asked.key] = getattr(self.backend, asked.how)(*arguments)
            if len(self._encoded) > KEPT:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(asked.key)
        return self._encoded[asked.key]

    def _traffic(self) -> Traffic:
        backend = self.backend
        return replace(backend.traffic) if isinstance(backend, RemoteBackend) else Traffic()
