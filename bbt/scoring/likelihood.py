"""Labels of several tokens are scored here by the likelihood of their words after the row's text."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from bbt.backend import EncodedPairs, TargetBackend, require
from bbt.errors import ConfigError
from bbt.scoring.scorer import Scorer
from bbt.settings import ScoredBy
from bbt.spaces.soft import LatentTargetBackend, PromptSpace, Space
from bbt.types import AnyPrompts, Latents, RowScores, Scores


@dataclass(frozen=True)
class LabelPairs:
    """B rows, each with the words of all K labels; the labels of a row are next to each other."""

    pairs: EncodedPairs
    """The B * K rows with their targets."""
    n_labels: int
    """The number of labels K."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return self.pairs.n_examples // self.n_labels

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all rows with all labels."""
        return self.pairs.n_tokens

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut; it is cut for all labels, and at the same place."""
        return self.pairs.n_truncated // self.n_labels

    def scores(self, log_likelihoods: RowScores, scored_by: ScoredBy) -> Scores:
        """Make scores (n, B, K) of the log-likelihoods (n, B K) of all labels."""
        if scored_by == "mean_likelihood":
            log_likelihoods = np.asarray(log_likelihoods / self.pairs.n_target_tokens, dtype=np.float32)
        return log_likelihoods.reshape(-1, self.n_examples, self.n_labels)


class LikelihoodScorer(Scorer):
    """The rows of one split of a task that is scored by `likelihood` or `mean_likelihood`."""

    def _encode(self, n_prompt_tokens: int) -> LabelPairs:
        if self._anchor is not None:
            raise ConfigError(f"prompt.placement: layernorm does not go with task.scored_by: {self._task.scored_by}.")
        rows = self._task.labelled_rows(self._examples, n_prompt_tokens)
        return LabelPairs(self._targets.encode_pairs(rows), len(self._task.label_words))

    def scores(self, prompts: AnyPrompts) -> Scores:
        """Score every row under soft prompts (n, T, H): the log-likelihoods (n, B, K) of the labels in nats, or their
        means over a label's tokens. The ledger counts it.

        Raises:
            ConfigError: deep or hard prompts.
        """
        if prompts.ndim != 3:
            raise ConfigError(f"task.scored_by: {self._task.scored_by} is for soft prompts at the input alone.")
        encoded = self._labelled(prompts.shape[1])
        score = partial(self._targets.target_log_likelihoods, prompts, encoded.pairs)
        by = self._task.scored_by
        return self._counted(prompts.nbytes, encoded, lambda: encoded.scores(score(), by))

    def latent_scores(self, latents: Latents, space: Space) -> Scores:
        """Score every row under the prompts that latents (n, d) stand for in a space; see `scores`. A backend that can
        hold the space is sent z instead of prompts."""
        backend = self._backend
        if not (isinstance(backend, LatentTargetBackend) and isinstance(space, PromptSpace)):
            return self.scores(space.prompts(latents))
        encoded = self._labelled(space.n_prompt_tokens)
        score = partial(backend.latent_log_likelihoods, latents, space, encoded.pairs)
        by = self._task.scored_by
        return self._counted(len(latents) * space.p0.nbytes, encoded, lambda: encoded.scores(score(), by))

    def _labelled(self, n_prompt_tokens: int) -> LabelPairs:
        """The rows with all labels, tokenised for so many prompt tokens."""
        encoded = self.encoded(n_prompt_tokens)
        assert isinstance(encoded, LabelPairs), "`_encode` makes them"
        return encoded

    @property
    def _targets(self) -> TargetBackend:
        return require(self._backend, TargetBackend, f"task.scored_by: {self._task.scored_by}")
