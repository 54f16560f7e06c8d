"""Rows whose answer is a text are scored here: by how likely a prompt makes that text, or by what the model writes."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bbt.backend import (
    Backend,
    Encoded,
    EncodedPairs,
    GenerationBackend,
    HardBackend,
    TargetBackend,
    Traffic,
    require,
)
from bbt.errors import ConfigError
from bbt.scoring.judge import Verdict
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import finite_losses
from bbt.scoring.scorer import Scorer
from bbt.spaces.soft import LatentTargetBackend, PromptSpace, Space
from bbt.tasks import Example, GenerationTask, Task
from bbt.types import AnyPrompts, Latents, Losses, Prompts, RowScores


@dataclass(frozen=True)
class TargetScores:
    """How likely the targets of B rows are."""

    log_likelihoods: RowScores
    """(B,) log-likelihoods of the targets in nats, summed over their tokens."""
    n_tokens: NDArray[np.int64]
    """(B,) the numbers of their tokens."""

    @property
    def row_losses(self) -> NDArray[np.float64]:
        """The losses (B,) of the rows: see `token_losses`."""
        return np.asarray(token_losses(self.log_likelihoods[None], self.n_tokens)[0])

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood, in nats, of the targets' tokens."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.row_losses.mean()))


class TargetScorer(Scorer):
    """The rows of one split of a task whose answer is a text, encoded once for each prompt length: with their targets,
    and without, to be written on."""

    def __init__(
        self,
        backend: Backend,
        task: Task,
        examples: Sequence[Example],
        ledger: Ledger,
        anchor: Prompts | None = None,
    ) -> None:
        super().__init__(backend, task, examples, ledger, anchor)
        self._contexts: dict[int, Encoded] = {}

    def _encode(self, n_prompt_tokens: int) -> EncodedPairs:
        if self._anchor is not None:
            raise ConfigError("prompt.placement: layernorm does not go with a task whose answer is a text.")
        backend = require(self._backend, TargetBackend, f"task {self._task.name}")
        return backend.encode_pairs(self._task.rows(self._examples, n_prompt_tokens))

    @property
    def examples(self) -> Sequence[Example]:
        """The rows, of which there are B."""
        return self._examples

    @property
    def task(self) -> GenerationTask:
        """The task that the rows belong to."""
        assert isinstance(self._task, GenerationTask), "`scorer_of` sees to it"
        return self._task

    @property
    def tells_likelihoods(self) -> bool:
        """Whether the backend tells how likely a target is; an API of text alone does not."""
        return isinstance(self._backend, TargetBackend)

    def log_likelihoods(self, prompts: Prompts) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets in nats under soft prompts (n, T, H). The ledger counts
        it."""
        pairs = self.pairs(prompts.shape[1])
        backend = require(self._backend, TargetBackend, f"task {self._task.name}")

        def score() -> RowScores:
            return backend.target_log_likelihoods(prompts, pairs)

        return self._counted(prompts.nbytes, pairs, score)

    def target_scores(self, prompt: Prompts) -> TargetScores | None:
        """How likely the targets are under one prompt (1, T, H), if the backend tells likelihoods. The ledger counts
        it."""
        if not self.tells_likelihoods:
            return None
        return TargetScores(self.log_likelihoods(prompt)[0], self.pairs(prompt.shape[1]).n_target_tokens)

    def latent_log_likelihoods(self, latents: Latents, space: Space) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets under the prompts that latents (n, d) stand for in a space.
        A backend that can hold the space is sent z instead of prompts."""
        backend = self._backend
        if not (isinstance(backend, LatentTargetBackend) and isinstance(space, PromptSpace)):
            return self.log_likelihoods(space.prompts(latents))
        pairs = self.pairs(space.n_prompt_tokens)
        return self._counted(
            len(latents) * space.p0.nbytes, pairs, lambda: backend.latent_log_likelihoods(latents, space, pairs)
        )

    def pairs(self, n_prompt_tokens: int) -> EncodedPairs:
        """Return the rows with their targets, tokenised for so many prompt tokens."""
        encoded: Encoded = self.encoded(n_prompt_tokens)
        assert isinstance(encoded, EncodedPairs), "`_encode` makes them"
        return encoded

    def texts(self, prompt: Prompts) -> list[str]:
        """Have the model write a text for each row under one prompt (1, T, H). The ledger counts it."""
        if not self._examples:
            return []
        backend = require(self._backend, GenerationBackend, f"task {self._task.name}")
        contexts, decoding = self._contexts_of(backend, prompt.shape[1]), self.task.decoding
        with self._ledger.meter.call(self._backend) as reading:
            texts = backend.generate(prompt, contexts, decoding)
        self._ledger.examples += len(texts)
        own = Traffic(prompt.nbytes, sum(len(text.encode()) for text in texts))
        self._bill(reading, own, lambda: contexts.n_tokens, lambda: self._n_tokens(texts), written=True)
        return texts

    def _n_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens of texts, where the backend has a tokenizer."""
        backend = self._backend
        return sum(len(backend.prompt_ids(text)) for text in texts) if isinstance(backend, HardBackend) else 0

    def _contexts_of(self, backend: GenerationBackend, n_prompt_tokens: int) -> Encoded:
        """Return the rows without their targets, tokenised for so many prompt tokens."""
        if n_prompt_tokens not in self._contexts:
            rows = self._task.rows(self._examples, n_prompt_tokens)
            self._contexts[n_prompt_tokens] = backend.encode_contexts(rows, self.task.decoding.max_new_tokens)
            self._count_cut(self._contexts[n_prompt_tokens], n_prompt_tokens)
        return self._contexts[n_prompt_tokens]


def target_rows(scorer: Scorer) -> TargetScorer:
    """Return the scorer of a task whose answer is a text as what it is."""
    assert isinstance(scorer, TargetScorer), "`scorer_of` makes them for such tasks"
    return scorer


def token_losses(log_likelihoods: RowScores, n_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Make losses (n, B) of rows out of the log-likelihoods (n, B) of their targets, which have `n_tokens` (B,). The
    mean of the losses is the mean negative log-likelihood of all tokens in nats, so that a row counts by its tokens."""
    return np.asarray(-log_likelihoods.astype(np.float64) * (log_likelihoods.shape[1] / n_tokens.sum()))


class TargetObjective:
    """The training loss of prompts (a `TrainingLoss`). With `cross_entropy` it is the mean negative log-likelihood of
    the targets' tokens, with `negative_metric` it is minus the task's first metric of what is generated.

    Raises:
        ConfigError: another loss.
    """

    def __init__(self, scorer: TargetScorer, loss: str, ledger: Ledger) -> None:
        if loss not in ("cross_entropy", "negative_metric"):
            raise ConfigError(
                f"objective.loss: {loss} is for tasks with labels; where text is generated, take cross_entropy (of the "
                "targets' tokens) or negative_metric."
            )
        self._scorer, self._by_metric, self._ledger = scorer, loss == "negative_metric", ledger

    def losses(self, prompts: AnyPrompts) -> Losses:
        """Compute the losses (n,) of soft prompts (n, T, H). It counts n train queries."""
        self._ledger.train_queries += len(prompts)
        if self._by_metric:
            task, examples = self._scorer.task, self._scorer.examples
            return np.array([-task.text_metric(self._scorer.texts(one[None]), examples) for one in prompts])
        return self._mean_losses(self._scorer.log_likelihoods(prompts), prompts.shape[1])

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """Compute the losses (n,) of the prompts that latents (n, d) stand for in a space; see `losses`."""
        if self._by_metric:
            return self.losses(space.prompts(latents))
        self._ledger.train_queries += len(latents)
        return self._mean_losses(self._scorer.latent_log_likelihoods(latents, space), space.n_prompt_tokens)

    def _mean_losses(self, found: RowScores, n_prompt_tokens: int) -> Losses:
        """Make losses (n,) of log-likelihoods (n, B)."""
        return finite_losses(token_losses(found, self._scorer.pairs(n_prompt_tokens).n_target_tokens).mean(axis=1))

    def counted_in(self, ledger: Ledger) -> "TargetObjective":
        """The same loss, whose costs are counted in another ledger."""
        other = copy(self)
        other._ledger, other._scorer = ledger, self._scorer.counted_in(ledger)
        return other

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Take note of losses of latents that a resumed run has recorded; this objective needs none of them."""

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Take note of losses of prompts that a resumed run has recorded; this objective needs none of them."""


class TargetJudge:
    """A judge of prompts on dev rows whose answer is a text (a `DevJudge`): it judges by the loss of the targets'
    tokens, and by the task's first metric of what is generated. Where the backend tells no likelihoods, minus that
    metric is the loss."""

    def __init__(self, scorer: TargetScorer, ledger: Ledger) -> None:
        self._scorer, self._ledger = scorer, ledger

    @property
    def n_examples(self) -> int:
        """The number of dev rows Bd."""
        return len(self._scorer.examples)

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """Give the n verdicts on soft prompts (n, T, H). It counts n dev queries."""
        self._ledger.dev_queries += len(prompts)
        return [self._verdict(prompt[None]) for prompt in prompts]

    def latent_verdicts(self, latents: Latents, space: Space) -> list[Verdict]:
        """Give the n verdicts on the prompts that latents (n, d) stand for in a space; see `verdicts`."""
        return self.verdicts(space.prompts(latents))

    def recall(self, latents: Latents, space: Space, verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on latents that a resumed run has recorded; this judge needs none of them."""

    def remember(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on prompts that a resumed run has recorded; this judge needs none of them."""

    def _verdict(self, prompt: Prompts) -> Verdict:
        scorer = self._scorer
        found = scorer.target_scores(prompt)
        return text_verdict(scorer.task, scorer.examples, found, lambda: scorer.texts(prompt))


def text_verdict(
    task: GenerationTask, examples: Sequence[Example], scores: TargetScores | None, texts: Callable[[], Sequence[str]]
) -> Verdict:
    """Give the verdict on what scores dev rows' targets so and, when it is asked, writes these texts. Where no
    likelihoods are told the metric stands for the loss."""
    if scores is None:
        metric = task.text_metric(texts(), examples)
        return Verdict(metric, -metric)
    losses = scores.row_losses
    if not np.isfinite(losses).all():
        return Verdict(0.0, float("inf"))
    return Verdict(task.text_metric(texts(), examples), float(losses.mean()), row_losses=tuple(losses.tolist()))
