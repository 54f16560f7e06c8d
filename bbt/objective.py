"""Prompts -> losses on the training rows, and the judgement on dev; every query is counted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from bbt.backend import Backend, Encoded, LatentBackend, RemoteBackend, Traffic, require_deep, require_hard
from bbt.losses import cross_entropy, finite_losses, predicted
from bbt.space import PromptSpace, Space
from bbt.tasks import Example, Task
from bbt.tasks.task import labels_of
from bbt.types import AnyPrompts, Labels, Latents, Losses, Prompts, Scores


@dataclass
class Ledger:
    """What a run has cost.

    A query is one candidate on the whole training set; dev queries are counted apart. `examples` are rows
    scored. `bytes_up` and `bytes_down` are what crossed the wire for that, or where there is none the prompts handed
    to the backend and the label scores returned. `seconds` is the time spent scoring train and dev prompts,
    `backend_seconds` the backend's part of it; the optimizer's stands apart. `tokens_up` and `tokens_down` are what an
    endpoint bills: the rows' tokens, prompt included, and those it generates. `truncated` rows were longer than the
    model, counted when they are encoded.
    """

    train_queries: int = 0
    dev_queries: int = 0
    examples: int = 0
    truncated: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    tokens_up: int = 0
    tokens_down: int = 0
    backend_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    seconds: float = 0.0

    def restore(self, snapshot: dict[str, float]) -> None:
        """Take the counts of an earlier snapshot."""
        self.__dict__.update(snapshot)

    def add(self, other: "Ledger") -> None:
        """Take over what a part of this run has cost."""
        for name, count in other.snapshot().items():
            setattr(self, name, getattr(self, name) + count)

    def snapshot(self) -> dict[str, float]:
        """The counts as plain numbers."""
        return asdict(self)


class Scorer:
    """The rows of one split, encoded once for each prompt length; with an `anchor` (1, T, H), as `Backend.encode`
    takes it, wherever they hold prompt tokens."""

    def __init__(
        self,
        backend: Backend,
        task: Task,
        examples: Sequence[Example],
        ledger: Ledger,
        anchor: Prompts | None = None,
    ) -> None:
        self._backend, self._task, self._examples, self._ledger = backend, task, examples, ledger
        self._anchor = anchor
        self._encoded: dict[int, Encoded] = {}
        self._truncated: dict[int, int] = {}
        self.labels: Labels = labels_of(examples)

    def encoded(self, n_prompt_tokens: int) -> Encoded:
        """The rows with this many prompt tokens (0: the manual template)."""
        if n_prompt_tokens not in self._encoded:
            rows = self._task.rows(self._examples, n_prompt_tokens)
            anchor = self._anchor if n_prompt_tokens else None
            encoded = self._backend.encode(rows, self._task.label_words, anchor)
            self._encoded[n_prompt_tokens] = encoded
            if n_prompt_tokens not in self._truncated:
                self._truncated[n_prompt_tokens] = encoded.n_truncated
                self._ledger.truncated += encoded.n_truncated
        return self._encoded[n_prompt_tokens]

    def anchored(self, anchor: Prompts) -> "Scorer":
        """The same rows with this anchor; those that were cut are not counted again."""
        other = Scorer(self._backend, self._task, self._examples, self._ledger, anchor)
        other._truncated = self._truncated
        return other

    def scores(self, prompts: AnyPrompts) -> Scores:
        """Soft prompts (n, T, H), deep (n, L, T, H) or hard (n, T) -> (n, B, K), counted.

        Raises:
            BackendError: deep or hard prompts on a backend that does not take them.
        """
        score: Callable[[AnyPrompts, Encoded], Scores]
        if prompts.ndim == 2:
            score = require_hard(self._backend).hard_scores
        elif prompts.ndim == 4:
            score = require_deep(self._backend).deep_label_scores
        else:
            score = self._backend.label_scores
        encoded = self.encoded(prompts.shape[1] if prompts.ndim == 2 else prompts.shape[-2])
        return self._counted(prompts.nbytes, encoded, lambda: score(prompts, encoded))

    def latent_scores(self, latents: Latents, space: Space) -> Scores:
        """Scores of the space's prompts: (n, d) -> (n, B, K), counted. A backend that can hold the space gets z."""
        backend = self._backend
        if not (isinstance(backend, LatentBackend) and isinstance(space, PromptSpace)):
            return self.scores(space.prompts(latents))
        encoded = self.encoded(space.n_prompt_tokens)
        return self._counted(latents.nbytes, encoded, lambda: backend.latent_scores(latents, space, encoded))

    def _counted(self, bytes_up: int, encoded: Encoded, score: Callable[[], Scores]) -> Scores:
        """Scores (n, B, K), with what they cost in the ledger: `bytes_up` where the backend knows of no traffic, the
        rows' own tokens and one a score where it is not told what is billed."""
        remote = self._backend if isinstance(self._backend, RemoteBackend) else None
        before = replace(remote.traffic) if remote else Traffic()
        start = time.perf_counter()
        scores = score()
        self._ledger.backend_seconds += time.perf_counter() - start
        self._ledger.examples += scores.shape[0] * scores.shape[1]
        after = remote.traffic if remote else Traffic(bytes_up, scores.nbytes)
        self._ledger.bytes_up += after.bytes_up - before.bytes_up
        self._ledger.bytes_down += after.bytes_down - before.bytes_down
        self._ledger.tokens_up += after.tokens_up - before.tokens_up or len(scores) * encoded.n_tokens
        self._ledger.tokens_down += after.tokens_down - before.tokens_down or len(scores) * encoded.n_examples
        return scores


class Objective:
    """Training loss of prompts: what the optimizer minimises."""

    def __init__(self, scorer: Scorer, loss: Callable[[Scores, Labels], Losses], ledger: Ledger) -> None:
        self._scorer, self._loss, self._ledger = scorer, loss, ledger

    def losses(self, prompts: AnyPrompts) -> Losses:
        """(n, T, H) or (n, T) -> (n,); a broken candidate is +inf. Counts n train queries."""
        return self._judged(self._scorer.scores(prompts))

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """Losses of the space's prompts: (n, d) -> (n,), as `losses`."""
        return self._judged(self._scorer.latent_scores(latents, space))

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Told of losses that a resumed run has recorded."""

    def _judged(self, scores: Scores) -> Losses:
        self._ledger.train_queries += len(scores)
        return finite_losses(self._loss(scores, self._scorer.labels))


@dataclass(frozen=True)
class Verdict:
    """How a prompt did on dev: the task's metric, and cross-entropy to break its ties."""

    metric: float
    loss: float

    def better_than(self, other: "Verdict", by: str) -> bool:
        """By the metric with ties broken by the loss, or by the loss alone."""
        mine, theirs = (self.metric, -self.loss), (other.metric, -other.loss)
        return mine > theirs if by == "metric" else mine[1] > theirs[1]


def verdicts(task: Task, labels: Labels, scores: Scores) -> list[Verdict]:
    """(n, B, K) -> n verdicts; NaN scores are the worst there is."""
    losses = finite_losses(cross_entropy(scores, labels))
    metrics = [task.metric(labels, row) for row in predicted(np.nan_to_num(scores))]
    broken = ~np.isfinite(losses)
    return [Verdict(0.0 if b else m, float(v)) for m, v, b in zip(metrics, losses, broken, strict=True)]


class Judge:
    """Judges prompts on dev rows."""

    def __init__(self, scorer: Scorer, task: Task, ledger: Ledger) -> None:
        self._scorer, self._task, self._ledger = scorer, task, ledger

    @property
    def n_examples(self) -> int:
        """B, the dev rows."""
        return len(self._scorer.labels)

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """(n, T, H) or (n, T) -> n verdicts. Counts n dev queries."""
        scores = self._scorer.scores(prompts)
        self._ledger.dev_queries += len(prompts)
        return verdicts(self._task, self._scorer.labels, scores)

    def recall(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Told of verdicts that a resumed run has recorded."""
