"""A `PoolBackend` shares candidates out over endpoints of the same model."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from backends import load_backend
from backends.pool.member import Member, PoolContexts, PoolPairs, PoolRows
from backends.pool.round import Round
from bbt.backend import (
    Backend,
    Decoding,
    Encoded,
    EncodedPairs,
    GenerationBackend,
    ModelInfo,
    Row,
    TargetBackend,
    Traffic,
    require,
)
from bbt.errors import BackendError, ConfigError
from bbt.scoring.losses import log_softmax
from bbt.spaces.soft import PromptSpace
from bbt.types import Latents, Prompts, RowScores, Scores

T = TypeVar("T")

WRITTEN_AT_ONCE = 16
"""The rows that an endpoint writes on at a time."""

FIRST_PATIENCE = 30.0
"""Seconds within which an endpoint must answer at the start, when nothing is lost by giving up."""


class PoolBackend:
    """Endpoints of one model, all of the same kind of `backend`, each with its own options.

    The endpoint that is free takes the next candidates. One that fails is left aside, for longer each time, and comes
    back; what one is slow with another does too. Scores come in the order of the candidates and do not depend on who
    computed them, as far as the endpoints agree.

    Args:
        model: the name of the model that every endpoint must serve.
        endpoints: the options of each endpoint's backend.
        backend: the kind of all the endpoints' backends, by name or `module:Class`.
        at_once: the candidates that an endpoint takes at a time.
        retries: how often each endpoint tries a request again before another endpoint does it.
        tolerance: a warning says where two endpoints differ by more than this in a log-probability of the first rows.
        patience: the seconds without any answer after which the pool gives up.

    Raises:
        EndpointError: no endpoint answers.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        endpoints: Sequence[Mapping[str, Any]],
        backend: str = "http",
        at_once: int = 1,
        retries: int = 1,
        tolerance: float = 1e-3,
        patience: float = 600.0,
    ) -> None:
        if not endpoints or at_once < 1:
            raise ConfigError("a pool needs endpoints: [{url: ...}, {url: ...}], and at_once of 1 or more.")
        self._at_once, self._tolerance, self._patience = at_once, tolerance, patience
        self._probe: PoolRows | None = None
        self._expected: tuple[str, NDArray[np.floating[Any]]] | None = None
        self._comparing = threading.Lock()
        self._differences: list[str] = []
        self._members = [
            Member(
                str(options.get("url", number)),
                partial(load_backend, backend, model=model, **{"retries": retries, **options}),
            )
            for number, options in enumerate(endpoints)
        ]
        self.info: ModelInfo = self._ask_any(lambda member: member.backend.info, min(patience, FIRST_PATIENCE))
        """Facts about the model, from the first endpoint that answered."""

    @property
    def traffic(self) -> Traffic:
        """The traffic of all scoring calls of all endpoints."""
        parts = [member.traffic for member in self._members]
        return Traffic(*(sum(getattr(part, field.name) for part in parts) for field in fields(Traffic)))

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> PoolRows:
        """Encode at one endpoint, which tells the counts; the others follow when they first meet the rows."""
        _require_rows(rows)

        def score(backend: Backend, prompts: Prompts, encoded: Any) -> Scores:
            return log_softmax(backend.label_scores(prompts, encoded))

        encoded = PoolRows(rows, lambda b: b.encode(rows, label_words, anchor), score, len(label_words))
        self._count(encoded)
        self._probe = self._probe or PoolRows(rows[:1], lambda b: b.encode(rows[:1], label_words), score)
        return encoded

    def encode_pairs(self, rows: Sequence[Row]) -> PoolPairs:
        """Encode rows that end in their targets, as `encode` does; see `TargetBackend.encode_pairs`."""
        _require_rows(rows)

        def score(backend: Backend, prompts: Prompts, encoded: Any) -> RowScores:
            return require(backend, TargetBackend).target_log_likelihoods(prompts, encoded)

        encoded = PoolPairs(rows, partial(_pairs, rows), score)
        known = self._count(encoded)
        assert isinstance(known, EncodedPairs), "`encode_pairs` makes them"
        encoded.n_target_tokens = known.n_target_tokens
        self._probe = self._probe or PoolRows(rows[:1], partial(_pairs, rows[:1]), score)
        return encoded

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> PoolContexts:
        """Encode what is to be written on, so many rows at a time as an endpoint takes of them."""
        _require_rows(rows)
        parts = [_contexts(rows[i : i + WRITTEN_AT_ONCE], max_new_tokens) for i in range(0, len(rows), WRITTEN_AT_ONCE)]
        for part in parts:
            self._count(part)
        return PoolContexts(parts)

    def _count(self, encoded: PoolRows) -> Encoded:
        """Take over the counts of rows from the endpoint that is free first."""
        known = self._ask_any(lambda member: member.encoded(encoded))
        encoded.n_examples, encoded.n_tokens, encoded.n_truncated = known.n_examples, known.n_tokens, known.n_truncated
        return known

    def label_scores(self, prompts: Prompts, encoded: PoolRows) -> Scores:
        """The scores (n, B, K) of prompts (n, T, H), in parts of `at_once` candidates.

        Raises:
            BackendError: prompts of another shape.
            EndpointError: no endpoint has answered for `patience` seconds.
        """
        return self._scores(
            prompts, encoded, lambda member, part: member.backend.label_scores(prompts[part], member.encoded(encoded))
        )

    def latent_scores(self, latents: Latents, space: PromptSpace, encoded: PoolRows) -> Scores:
        """The scores (n, B, K) of latents (n, d): z travels to endpoints that can hold the space."""
        return self._scores(latents, encoded, lambda member, part: member.latent_scores(latents[part], space, encoded))

    def target_log_likelihoods(self, prompts: Prompts, encoded: PoolPairs) -> RowScores:
        """The log-likelihoods (n, B) of the targets under prompts (n, T, H); otherwise as `label_scores`."""
        return self._scores(
            prompts, encoded, lambda member, part: member.target_log_likelihoods(prompts[part], encoded)
        )

    def latent_log_likelihoods(self, latents: Latents, space: PromptSpace, encoded: PoolPairs) -> RowScores:
        """The log-likelihoods (n, B) of the targets under latents (n, d); see `latent_scores`."""
        return self._scores(
            latents, encoded, lambda member, part: member.latent_log_likelihoods(latents[part], space, encoded)
        )

    def generate(self, prompt: Prompts, encoded: PoolContexts, decoding: Decoding) -> list[str]:
        """What the model writes under one prompt (1, T, H). Rows are shared out, not candidates.

        Raises:
            BackendError, EndpointError: as `label_scores`.
        """

        def work(member: Member, part: slice) -> list[str]:
            self._admit(member)
            return [text for rows in encoded.parts[part] for text in member.texts(prompt, rows, decoding)]

        texts = [text for part in self._share_out(len(encoded.parts), 1, work) for text in part]
        self._tell_differences()
        return texts

    def embed_text(self, text: str) -> Prompts:
        """The word embeddings (1, T, H) of a text."""
        return self._ask_any(lambda member: member.backend.embed_text(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids."""
        return self._ask_any(lambda member: member.backend.embed_ids(token_ids))

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens that are not special."""
        return self._ask_any(lambda member: member.backend.ordinary_ids())

    def _ask_any(self, question: Callable[[Member], T], patience: float | None = None) -> T:
        """The answer of the endpoint that is free first."""
        return self._share_out(1, 1, lambda member, part: question(member), patience)[0]

    def _scores(self, arrays: Latents | Prompts, encoded: PoolRows, score: Callable[[Member, slice], Scores]) -> Scores:
        def work(member: Member, part: slice) -> Scores:
            self._admit(member)
            return score(member, part)

        if not len(arrays):
            return np.empty((0, encoded.n_examples, *([encoded.n_labels] if encoded.n_labels else [])), np.float32)
        scores = np.concatenate(self._share_out(len(arrays), self._at_once, work))
        self._tell_differences()
        return scores

    def _tell_differences(self) -> None:
        """Warn, on the caller's thread, of differences that were found on the endpoints'."""
        with self._comparing:
            differences, self._differences = self._differences, []
        for difference in differences:
            warnings.warn(difference, stacklevel=4)

    def _share_out(
        self, n: int, at_once: int, work: Callable[[Member, slice], T], patience: float | None = None
    ) -> list[T]:
        round = Round[T](n, at_once)
        for member in self._members:
            member.offer(round, work)
        return round.results(patience or self._patience)

    def _admit(self, member: Member) -> None:
        """Check an endpoint once, before it works: it must serve the same model, and give the same scores of one row
        under an empty prompt of zeros.

        Raises:
            BackendError: another model.
        """
        if member.admitted:
            return
        its = member.backend.info
        if its.fingerprint != self.info.fingerprint:
            raise BackendError(
                f"the endpoints of a pool must serve one model: {member.name} has {its.name} (weights "
                f"{its.fingerprint}), another {self.info.name} (weights {self.info.fingerprint})."
            )
        probe = self._probe
        if probe is None or probe.score is None:
            return
        n_tokens = sum(segment.n_tokens for segment in probe.rows[0])
        zeros = np.zeros((1, n_tokens, its.hidden_size), np.float32)
        scores = probe.score(member.backend, zeros, member.encoded(probe))
        with self._comparing:
            name, expected = self._expected = self._expected or (member.name, scores)
        difference = float(np.abs(scores - expected).max())
        if not difference <= self._tolerance:
            with self._comparing:
                self._differences.append(
                    f"{member.name} and {name} differ by {difference:.2g} in a log-probability of the same row: "
                    "another precision, or another version?"
                )
        member.admitted = True


def _pairs(rows: Sequence[Row], backend: Backend) -> EncodedPairs:
    """The rows with their targets as a backend encodes them."""
    return require(backend, TargetBackend).encode_pairs(rows)


def _contexts(rows: Sequence[Row], max_new_tokens: int) -> PoolRows:
    """Rows that an endpoint writes on together."""
    return PoolRows(rows, lambda b: require(b, GenerationBackend).encode_contexts(rows, max_new_tokens))


def _require_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise BackendError("there are no rows to encode.")
