"""The spaces of hard prompts: what a search over prompts of words runs over."""

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
    """The hard prompts to which the prompts of a soft space are rounded."""

    soft: PromptSpace
    """The space of soft prompts, in which z is searched."""
    ids: TokenIds
    """(V,) token ids of the words that prompts are made of."""
    words: NDArray[np.float32]
    """(V, H) embeddings of those words."""
    metric: Similarity
    """How near a prompt token is to a word: by cosine or by distance."""
    rule: Rule
    """How prompt tokens take their words: see `bbt.spaces.rounding.rounded`."""
    seed: int = 0
    """The seed of the `stochastic` rule's draws."""

    @property
    def intrinsic_dim(self) -> int:
        """The intrinsic dimension d of the soft space."""
        return self.soft.intrinsic_dim

    @property
    def n_prompt_tokens(self) -> int:
        """The number of prompt tokens T."""
        return self.soft.n_prompt_tokens

    @property
    def p0(self) -> TokenIds:
        """The words (1, T) nearest to the untuned soft prompt."""
        return self.rounded(self.soft.p0)

    @property
    def no_prompt(self) -> TokenIds:
        """The manual prompt (1, 0)."""
        return np.zeros((1, 0), dtype=np.int64)

    def prompts(self, latents: Latents) -> TokenIds:
        """The tokens (n, T) of the prompts that latents (n, d) stand for."""
        return self.rounded(self.soft.prompts(latents))

    def rounded(self, prompts: Prompts) -> TokenIds:
        """The tokens (n, T) to which soft prompts (n, T, H) are rounded."""
        return self.ids[rounded(prompts, self.words, self.metric, self.rule, self.seed)]


@dataclass(frozen=True)
class ChoiceSpace:
    """The hard prompts of T words of a vocabulary of V; a latent (T,) holds the number of the word chosen at each
    place."""

    ids: TokenIds
    """(V,) token ids of the words to choose from."""
    n_prompt_tokens: int
    """T, the number of choices."""

    @property
    def intrinsic_dim(self) -> int:
        """The dimension of a latent: T choices."""
        return self.n_prompt_tokens

    @property
    def p0(self) -> TokenIds:
        """The prompt (1, T) of the first words."""
        return self.prompts(np.arange(self.n_prompt_tokens)[None] % len(self.ids))

    @property
    def no_prompt(self) -> TokenIds:
        """The manual prompt (1, 0)."""
        return np.zeros((1, 0), dtype=np.int64)

    def prompts(self, latents: NDArray[np.floating] | NDArray[np.integer]) -> TokenIds:
        """The tokens (n, T) of the numbers of choices (n, T)."""
        return self.ids[latents.astype(np.int64)]
