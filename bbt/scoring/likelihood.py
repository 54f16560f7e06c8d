"""Labels of several tokens, scored by their likelihood: what a label's words have after the row's text."""

from dataclasses import dataclass

import numpy as np

from bbt.backend import EncodedPairs, TargetBackend, require
from bbt.errors import ConfigError
from bbt.scoring.scorer import Scorer
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Latents, Scores


@dataclass(frozen=True)
class LabelPairs:
    """B rows, each with the words of all K labels; the labels of a row are next to each other."""

    pairs: EncodedPairs
    """(B * K) rows with their targets."""
    n_labels: int
    """K."""

    @property
    def n_examples(self) -> int:
        """B."""
        return self.pairs.n_examples // self.n_labels

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows with all labels."""
        return self.pairs.n_tokens

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut: for all labels, and at the same place."""
        return self.pairs.n_truncated // self.n_labels


class LikelihoodScorer(Scorer):
    """The rows of one split of a task that is scored by `likelihood` or `mean_likelihood`."""

    def _encode(self, n_prompt_tokens: int) -> LabelPairs:
        if self._anchor is not None:
            raise ConfigError(f"prompt.placement: layernorm does not go with task.scored_by: {self._task.scored_by}.")
        rows = self._task.labelled_rows(self._examples, n_prompt_tokens)
        return LabelPairs(self._targets.encode_pairs(rows), len(self._task.label_words))

    def scores(self, prompts: AnyPrompts) -> Scores:
        """(n, T, H) -> (n, B, K) log-likelihoods, or these a token, counted.

        Raises:
            ConfigError: deep or hard prompts.
        """
        if prompts.ndim != 3:
            raise ConfigError(f"task.scored_by: {self._task.scored_by} is for soft prompts at the input alone.")
        encoded = self.encoded(prompts.shape[1])
        assert isinstance(encoded, LabelPairs), "`_encode` makes them"
        pairs = encoded.pairs

        def score() -> Scores:
            found = self._targets.target_log_likelihoods(prompts, pairs)
            if self._task.scored_by == "mean_likelihood":
                found = np.asarray(found / pairs.n_target_tokens, dtype=np.float32)
            return found.reshape(len(prompts), encoded.n_examples, encoded.n_labels)

        return self._counted(prompts.nbytes, encoded, score)

    def latent_scores(self, latents: Latents, space: Space) -> Scores:
        """Scores of the space's prompts: (n, d) -> (n, B, K), counted."""
        return self.scores(space.prompts(latents))

    @property
    def _targets(self) -> TargetBackend:
        return require(self._backend, TargetBackend, f"task.scored_by: {self._task.scored_by}")
