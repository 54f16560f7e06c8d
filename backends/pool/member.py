"""A member is one endpoint of a pool: it is connected when it answers, and left aside when it does not."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from backends.pool.round import Round
from bbt.backend import (
    Backend,
    Decoding,
    Encoded,
    EncodedPairs,
    GenerationBackend,
    RemoteBackend,
    Row,
    TargetBackend,
    Traffic,
    require,
)
from bbt.errors import EndpointError
from bbt.spaces.soft import LatentBackend, LatentTargetBackend, PromptSpace
from bbt.types import Latents, Prompts, RowScores, Scores

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds that an endpoint is left aside after a fault; doubled at every further one."""

T = TypeVar("T")


@dataclass(eq=False)
class PoolRows:
    """The rows of one split; each endpoint encodes them when it first meets them."""

    rows: Sequence[Row]
    """(B,) the rows as segments."""
    encode: Callable[[Backend], Encoded]
    """What has a backend encode them."""
    score: Callable[[Backend, Prompts, Any], NDArray[np.floating[Any]]] | None = None
    """What has a backend score them as encoded there, so that endpoints can be compared: log-probabilities of label
    words, or of targets (none: they are not scored)."""
    n_labels: int = 0
    """The number of label words K (0: it is not label words that are scored)."""
    n_examples: int = 0
    """The number of rows B."""
    n_tokens: int = 0
    """Tokens of all rows, prompt tokens included."""
    n_truncated: int = 0
    """Rows whose text was cut."""


@dataclass(eq=False)
class PoolPairs(PoolRows):
    """The rows of one split with their targets."""

    n_target_tokens: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """The number of tokens (B,) of each row's target."""


@dataclass(frozen=True)
class PoolContexts:
    """The rows of one split that are to be written on, in parts that are shared out."""

    parts: list[PoolRows]
    """The parts, in the rows' order."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return sum(part.n_examples for part in self.parts)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows, prompt tokens included."""
        return sum(part.n_tokens for part in self.parts)

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut."""
        return sum(part.n_truncated for part in self.parts)


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
            self._encoded[rows] = rows.encode(self.backend)
        return self._encoded[rows]

    def latent_scores(self, latents: Latents, space: PromptSpace, rows: PoolRows) -> Scores:
        """The scores of the prompts that latents (n, d) stand for in a space."""
        backend, encoded = self.backend, self.encoded(rows)
        if isinstance(backend, LatentBackend):
            return backend.latent_scores(latents, space, encoded)
        return backend.label_scores(space.prompts(latents), encoded)

    def latent_log_likelihoods(self, latents: Latents, space: PromptSpace, rows: PoolPairs) -> RowScores:
        """The log-likelihoods of the targets under the prompts that latents (n, d) stand for in a space."""
        backend, encoded = self.backend, self.encoded(rows)
        if isinstance(backend, LatentTargetBackend):
            return backend.latent_log_likelihoods(latents, space, encoded)
        return self.target_log_likelihoods(space.prompts(latents), rows)

    def target_log_likelihoods(self, prompts: Prompts, rows: PoolPairs) -> RowScores:
        """The log-likelihoods of the targets under prompts (n, T, H)."""
        encoded = self.encoded(rows)
        assert isinstance(encoded, EncodedPairs), "`PoolRows.encode` makes them"
        return require(self.backend, TargetBackend).target_log_likelihoods(prompts, encoded)

    def texts(self, prompt: Prompts, rows: PoolRows, decoding: Decoding) -> list[str]:
        """What the model writes after rows under one prompt (1, T, H)."""
        return require(self.backend, GenerationBackend).generate(prompt, self.encoded(rows), decoding)

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
