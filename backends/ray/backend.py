"""A `RayBackend` shares candidates out over actors of a Ray cluster."""

import os
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from backends.ray.actor import Actor, Answer, Counts, Question, RowsAsked
from backends.ray.crew import Crew
from backends.ray.offers import OFFERS, Asking, RayPairs, RayRows
from bbt.backend import Decoding, ModelInfo, Row, Traffic
from bbt.cluster import Resources, join
from bbt.config import validated
from bbt.errors import BackendError, ConfigError
from bbt.types import AnyPrompts, Prompts, Scores


class RayBackend(Asking):
    """Any backend of ours inside actors, which Ray puts where the cluster has room for them.

    Candidates are handed out in shares of `at_once`, to whichever actor is free. A share is one call of the actors'
    backend, and what it holds depends on `at_once` alone: neither the number of actors nor who computes what, nor a
    death in between, changes a bit of the scores. On one kind of device they are those of one process that scores in
    the same shares (`backend: local, options: {at_once: ...}`).

    An actor that dies is replaced, and its share is scored elsewhere. Actors for which there is no room yet join when
    there is. The object also has the methods of each capability of `backends.ray.offers` that the actors' backend has.

    Args:
        model: the model's name, for the actors' backend.
        actors: the number of actors.
        actor: what each asks for: cpu (1), gpu (0) and memory, as `bbt.cluster.Resources`.
        backend: the actors' backend, by name or `module:Class`.
        at_once: the candidates of a share.
        address: the cluster's address; see `bbt.cluster.join`.
        patience: the seconds without any answer after which the run gives up; it can be resumed.
        options: the options of the actors' backend.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or options that cannot be used.
        BbtError: what the actors' backend raises when it is made.
        EndpointError: no actor was ready within `patience` seconds.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        actors: int = 2,
        actor: Mapping[str, Any] | None = None,
        backend: str = "local",
        at_once: int = 1,
        address: str = "auto",
        patience: float = 600.0,
        **options: Any,
    ) -> None:
        if actors < 1 or at_once < 1:
            raise ConfigError(f"backend ray needs actors and at_once of 1 or more, got {actors} and {at_once}.")
        wanted = validated(Resources, actor or {}, "model.options.actor")
        self._ray, self._n, self._at_once = join(address), actors, at_once
        self._traffic, self._counting = Traffic(), threading.Lock()
        hire = partial(_hired, self._ray, wanted, backend, model, options)
        raised = self._ray.exceptions.RayTaskError, self._ray.exceptions.RayError
        self._crew = Crew(hire, actors, raised, patience)
        self._stop = weakref.finalize(self, self._crew.stop)
        try:
            ready = self._crew.first.result()
        except BaseException:
            self._stop()
            raise
        self.info: ModelInfo = ready.info
        """Facts about the model."""
        kinds = (*(OFFERS[name] for name in ready.offers), type(self))
        self.__class__ = type(type(self).__name__, kinds, {"__doc__": RayBackend.__doc__})  # with what actors offer

    @property
    def traffic(self) -> Traffic:
        """The bytes of the prompts that went to actors and of the scores and texts that came back, and what the actors'
        own backends have exchanged for them; the tokens that those were billed."""
        with self._counting:
            return Traffic(**vars(self._traffic))

    @property
    def n_ready(self) -> int:
        """The number of actors whose model is loaded."""
        return self._crew.n_ready

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> RayRows:
        """Encode with one actor, which tells the counts; the others follow when they first meet the rows."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        encoded: RayRows = self._encoded("encode", list(rows), list(label_words), anchor)
        return encoded

    def label_scores(self, prompts: Prompts, encoded: RayRows) -> Scores:
        """The scores (n, B, K) of prompts (n, T, H), in shares of `at_once` candidates.

        Raises:
            BackendError: prompts of another shape, or candidates at which one actor after the other dies.
            EndpointError: no actor has answered for `patience` seconds.
        """
        return self._scores("label_scores", prompts, encoded)

    def embed_text(self, text: str) -> Prompts:
        """The word embeddings (1, T, H) of a text."""
        return np.asarray(self._any("embed_text", text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids."""
        return np.asarray(self._any("embed_ids", list(token_ids)))

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens that are not special."""
        return list(self._any("ordinary_ids"))

    def close(self) -> None:
        """Let the actors go. Without this they go with the object."""
        self._stop()

    def _scores(self, method: str, arrays: AnyPrompts, rows: RayRows) -> Scores:
        step = self._at_once
        shares = [arrays[start : start + step] for start in range(0, len(arrays), step)] or [arrays]  # none: its shape
        questions = [Question(method, (np.ascontiguousarray(share),), rows.asked) for share in shares]
        answers = self._crew.ask(questions)
        scores = np.concatenate([answer.value for answer in answers])
        self._count(sum(question.n_bytes for question in questions), scores.nbytes, answers)
        return scores

    def _any(self, method: str, *before: Any, rows: RayRows | None = None, after: tuple[Any, ...] = ()) -> Any:
        (answer,) = self._crew.ask([Question(method, before, rows.asked if rows else None, after)])
        return answer.value

    def _texts(self, prompt: Prompts, rows: RayRows, decoding: Decoding) -> list[str]:
        question = Question("generate", (np.ascontiguousarray(prompt),), rows.asked, (decoding,))
        answers = self._crew.ask([question])
        texts = [str(text) for text in answers[0].value]
        self._count(question.n_bytes, sum(len(text.encode()) for text in texts), answers)
        return texts

    def _every(self, method: str) -> list[Any]:
        return [answer.value for answer in self._crew.ask([Question(method)] * self._n)]

    def _encoded(self, how: str, *arguments: Any) -> RayRows:
        asked = RowsAsked(uuid.uuid4().hex, how, [self._ray.put(arguments)])
        (answer,) = self._crew.ask([Question("counts", rows=asked)])
        found: Counts = answer.value
        counts = asked, found.n_examples, found.n_tokens, found.n_truncated
        return RayRows(*counts) if found.n_target_tokens is None else RayPairs(*counts, found.n_target_tokens)

    def _count(self, up: int, down: int, answers: Sequence[Answer]) -> None:
        """Count what scores have cost."""
        with self._counting:
            self._traffic.bytes_up += up
            self._traffic.bytes_down += down
            for answer in answers:
                for part in fields(Traffic):
                    more = getattr(self._traffic, part.name) + getattr(answer.traffic, part.name)
                    setattr(self._traffic, part.name, more)


def _hired(ray: Any, wanted: Resources, backend: str, model: str, options: Mapping[str, Any]) -> Any:
    """A new actor, on whichever node has room, and rather on one that has none yet.

    Raises:
        BackendError: the process has left the cluster.
    """
    if not ray.is_initialized():  # Ray would start a cluster by itself
        raise BackendError("the Ray cluster of this backend has been left (ray.shutdown).")
    kind = ray.remote(Actor).options(scheduling_strategy="SPREAD", max_restarts=0, **wanted.options())
    return kind.remote(backend, model, dict(options), os.getcwd())
