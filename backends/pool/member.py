"""A member is one endpoint of a pool: it is connected when it answers, and left aside when it does not."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from backends.pool.round import Round
from bbt.backend import Backend, Encoded, RemoteBackend, Row, Traffic
from bbt.errors import EndpointError
from bbt.spaces.soft import LatentBackend, PromptSpace
from bbt.types import Latents, Prompts, Scores

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds that an endpoint is left aside after a fault; doubled at every further one."""

T = TypeVar("T")


@dataclass(eq=False)
class PoolRows:
    """The rows of one split; each endpoint encodes them when it first meets them."""

    rows: Sequence[Row]
    """(B,) the rows as segments."""
    label_words: Sequence[str]
    """(K,) the label words to score."""
    anchor: Prompts | None = None
    """(1, T, H) the prompt that the rows are encoded with (none: they have none)."""
    n_examples: int = 0
    """The number of rows B."""
    n_tokens: int = 0
    """Tokens of all rows, prompt tokens included."""
    n_truncated: int = 0
    """Rows whose text was cut."""


class Member:
    """An endpoint with a thread of its own, so that a slow one holds nobody up; its backend, made by `connect`, is
    used on that thread only. `admitted` is set once the pool has compared it with the others."""

    def __init__(self, name: str, connect: Callable[[], Backend]) -> None:
        self.name, self.admitted = name, False
        self._connect = connect
        self._encoded: WeakKeyDictionary[PoolRows, Encoded] = WeakKeyDictionary()
        self._faults = 0
        self._rounds: queue.SimpleQueue[tuple[Round[Any], Callable[[Member, slice], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=f"endpoint {name}", daemon=True).start()

    @cached_property
    def backend(self) -> Backend:
        """The endpoint's backend, connected when it is first needed.

        Raises:
            EndpointError: it does not answer.
        """
        return self._connect()

    @property
    def traffic(self) -> Traffic:
        """The traffic of the endpoint's scoring calls."""
        backend = self.__dict__.get("backend")  # looked up without connecting, which `self.backend` would do
        return backend.traffic if isinstance(backend, RemoteBackend) else Traffic()

    def offer(self, round: Round[T], work: Callable[["Member", slice], T]) -> None:
        """Take part in a round, in which `work` does one part."""
        self._rounds.put((round, work))

    def encoded(self, rows: PoolRows) -> Encoded:
        """The rows as this endpoint has them."""
        if rows not in self._encoded:
            self._encoded[rows] = self.backend.encode(rows.rows, rows.label_words, rows.anchor)
        return self._encoded[rows]

    def latent_scores(self, latents: Latents, space: PromptSpace, rows: PoolRows) -> Scores:
        """The scores of the prompts that latents (n, d) stand for in a space."""
        backend, encoded = self.backend, self.encoded(rows)
        if isinstance(backend, LatentBackend):
            return backend.latent_scores(latents, space, encoded)
        return backend.label_scores(space.prompts(latents), encoded)

    def _serve(self) -> None:
        while True:
            round, work = self._rounds.get()
            while (part := round.take()) is not None:
                try:
                    round.put(part, work(self, part))
                    self._faults = 0
                except EndpointError as error:
                    round.give_back(part, error)
                    time.sleep(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**self._faults))
                    self._faults += 1
                except Exception as error:
                    round.fail(error)
