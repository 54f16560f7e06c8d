"""`LocalRows` are the rows of one split, tokenised, with the head for its label words."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.local.encoding import Tokenised, TokenRow
from backends.local.head import LabelHead
from backends.local.pairs import TokenPairs
from backends.local.plans import Plan
from backends.local.trees import Forest
from bbt.types import DeepPrompts

KEPT_BYTES = 2**28
"""Shared hidden states of one split are kept only up to this size; larger splits are computed from the bottom."""


@dataclass(frozen=True)
class Shared:
    """The hidden states that the candidates of a turn share (BBTv2), under the prompts of the lower layers."""

    layer: int
    """The layer that the states enter."""
    lower: DeepPrompts
    """(layer, T, H) prompts of the layers below it."""
    states: Tensor
    """The hidden states (N, H) of the N tokens of all rows, end to end."""

    def holds_for(self, prompts: DeepPrompts) -> bool:
        """Whether all candidates (n, L, T, H) have these lower prompts."""
        return bool((prompts[:, : self.layer] == self.lower).all())


class Planned(Protocol):
    """Rows whose work is cut into micro-batches."""

    lengths: list[int]
    """The number of tokens of each row (B,)."""
    plans: dict[Hashable, list[Plan]]
    """The plans of micro-batches that are kept, by kind."""


class LaidRows(Planned, Protocol):
    """Tokenised rows, end to end: what an evaluation lays out and embeds."""

    reads: list[int]
    """The position in each row (B,) whose hidden state is read, or the first one of several."""
    tokens: NDArray[np.int64]
    """The token ids (N,) of all rows, end to end."""
    starts: NDArray[np.int64]
    """The place (B + 1,) at which each row begins among all tokens, and N at the end."""

    @property
    def n_prefix(self) -> int:
        """The number of tokens at the left that are the same in every row; they are computed once a candidate."""

    @property
    def anchor(self) -> Tensor | None:
        """The word embeddings (1, T, E) that stand in the prompt's places; see `LocalRows`."""


@dataclass
class LocalRows:
    """The rows of one split, tokenised for a local model."""

    rows: list[TokenRow]
    """(B,) rows of token ids."""
    label_ids: Tensor
    """(K,) token ids of the label words."""
    head: LabelHead
    """The head that makes the label words' logits from hidden states."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""
    n_prefix: int
    """The number of tokens at the left that are the same in every row of a causal LM; they are computed once a
    candidate."""
    anchor: Tensor | None = None
    """(1, T, E) word embeddings that stand in the prompt's places; a prompt's difference from them comes later."""
    shared: Shared | None = None
    """What the last turn of a deep search left here for the next; another one is computed where it does not hold."""

    def __post_init__(self) -> None:
        self.lengths = [len(row.ids) for row in self.rows]
        self.reads = [row.read for row in self.rows]
        self.tokens = np.concatenate([row.ids for row in self.rows])
        self.starts = np.cumsum([0, *self.lengths])
        self.plans: dict[Hashable, list[Plan]] = {}

    @cached_property
    def ids(self) -> list[Tensor]:
        """The token ids of each row, on the device."""
        return [torch.tensor(row.ids, device=self.label_ids.device) for row in self.rows]

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """The tokens of all rows, prompt tokens included."""
        return len(self.tokens)

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut."""
        return sum(row.truncated for row in self.rows)


@dataclass
class LocalPairs(TokenPairs):
    """One split of contexts with their targets, tokenised for a local model."""

    longest: int
    """The most tokens of a sequence in which the targets of one context may stand (0: each pair stands alone)."""

    @cached_property
    def forest(self) -> Forest:
        """The pairs as they are computed."""
        return Forest(self.pairs, self.longest)


@dataclass
class LocalContexts(Tokenised):
    """One split of contexts to write on from, tokenised."""

    max_new_tokens: int
    """The number of tokens that there is room for after each of them."""


def common_prefix(rows: Sequence[TokenRow]) -> int:
    """Count the tokens at the left that all rows share; every row keeps at least its read position to compute."""
    shortest, first = min(row.read for row in rows), rows[0].ids
    return next((i for i in range(shortest) if any(row.ids[i] != first[i] for row in rows)), shortest)


def differing(prompts: DeepPrompts) -> NDArray[np.bool_]:
    """Find the layers (L,) at which candidates (n, L, T, H) differ."""
    return np.asarray((prompts != prompts[:1]).any(axis=(0, 2, 3)))


def lowest_difference(prompts: DeepPrompts) -> int:
    """Find the lowest layer at which candidates (n, L, T, H) differ; it is the topmost if they are all the same."""
    differ = differing(prompts)
    return int(differ.argmax()) if differ.any() else len(differ) - 1


def clipped_std(values: Tensor) -> float:
    """Compute the standard deviation after five rounds of clipping to mean +- 3 std, as in BBTv2's released code."""
    values = values.float()
    for _ in range(5):
        std, mean = torch.std_mean(values)
        values = values.clamp(mean - 3 * std, mean + 3 * std)
    return float(np.float32(values.std().item()))
