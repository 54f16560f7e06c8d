"""Spaces of hard prompts: what a search over prompts of words searches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bbt.backend import Backend, HardBackend, require
from bbt.spaces.rounding import Rule, Similarity, rounded
from bbt.spaces.soft import PromptSpace
from bbt.types import Latents, Prompts, TokenIds


def readable_ids(backend: Backend) -> list[int]:
    """Ids of the tokens that are words by themselves: written down and read again they are the same token, so that a
    prompt of them means the same to an endpoint that takes text only.

    Raises:
        BackendError: the backend takes soft prompts only.
    """
    words = require(backend, HardBackend)
    texts = {i: words.prompt_text([i]) for i in backend.ordinary_ids()}
    return [i for i, text in texts.items() if _printable(text.strip()) and words.prompt_ids(text) == [i]]


def _printable(text: str) -> bool:
    return bool(text) and text.isprintable()


@dataclass(frozen=True)
class RoundedSpace:
    """The prompts of a soft space, rounded to the nearest of the words `ids` (V,) with embeddings `words` (V, H)."""

    soft: PromptSpace
    ids: TokenIds
    words: NDArray[np.float32]
    metric: Similarity
    rule: Rule
    seed: int = 0

    @property
    def intrinsic_dim(self) -> int:
        """d."""
        return self.soft.intrinsic_dim

    @property
    def n_prompt_tokens(self) -> int:
        """T."""
        return self.soft.n_prompt_tokens

    @property
    def p0(self) -> TokenIds:
        """(1, T): the words nearest to the untuned soft prompt."""
        return self.rounded(self.soft.p0)

    @property
    def no_prompt(self) -> TokenIds:
        """(1, 0): the manual prompt."""
        return np.zeros((1, 0), dtype=np.int64)

    def prompts(self, latents: Latents) -> TokenIds:
        """(n, d) -> (n, T)."""
        return self.rounded(self.soft.prompts(latents))

    def rounded(self, prompts: Prompts) -> TokenIds:
        """(n, T, H) -> (n, T)."""
        return self.ids[rounded(prompts, self.words, self.metric, self.rule, self.seed)]


@dataclass(frozen=True)
class ChoiceSpace:
    """All prompts of `n_prompt_tokens` of the words `ids` (V,); a latent is the numbers of the words chosen."""

    ids: TokenIds
    n_prompt_tokens: int

    @property
    def intrinsic_dim(self) -> int:
        """T choices."""
        return self.n_prompt_tokens

    @property
    def p0(self) -> TokenIds:
        """(1, T): the first words."""
        return self.prompts(np.arange(self.n_prompt_tokens)[None] % len(self.ids))

    @property
    def no_prompt(self) -> TokenIds:
        """(1, 0): the manual prompt."""
        return np.zeros((1, 0), dtype=np.int64)

    def prompts(self, latents: NDArray[np.floating] | NDArray[np.integer]) -> TokenIds:
        """(n, T) numbers of choices -> (n, T) tokens."""
        return self.ids[latents.astype(np.int64)]
