"""Deep prompts (BBTv2): what the candidates of a turn share, and how wide a layer's hidden states are."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bbt.types import DeepPrompts

KEPT_BYTES = 2**28
"""Shared hidden states of one split are kept only up to this size; larger splits are computed from the bottom."""


@dataclass(frozen=True)
class Shared:
    """Hidden states that enter layer `layer` under the prompts `lower` (layer, T, H)."""

    layer: int
    lower: DeepPrompts
    states: Tensor
    """(tokens, H) of all rows end to end."""

    def holds_for(self, prompts: DeepPrompts) -> bool:
        """All candidates (n, L, T, H) have these lower prompts."""
        return bool((prompts[:, : self.layer] == self.lower).all())


def lowest_difference(prompts: DeepPrompts) -> int:
    """The lowest layer at which candidates (n, L, T, H) differ; the topmost if they are all the same."""
    differ = (prompts != prompts[:1]).any(axis=(0, 2, 3))
    return int(differ.argmax()) if differ.any() else len(differ) - 1


def clipped_std(values: Tensor) -> float:
    """Standard deviation after five rounds of clipping to mean +- 3 std, as in BBTv2's released code."""
    values = values.float()
    for _ in range(5):
        std, mean = torch.std_mean(values)
        values = values.clamp(mean - 3 * std, mean + 3 * std)
    return float(np.float32(values.std().item()))
