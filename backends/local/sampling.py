"""Tokens are drawn here from uniform numbers of their own, so that a text depends on its seed alone: on no generator of
the process, on no other thread, and on no row that happens to be generated beside it."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bbt.backend import Decoding
from bbt.draws import stable_uniform


class Draw:
    """A logits processor of `transformers` that leaves one token possible: the one that is drawn. It serves one call of
    `generate`, on rows (B,) of token ids."""

    def __init__(self, rows: Sequence[Sequence[int]], decoding: Decoding) -> None:
        self._numbers = np.array(
            [stable_uniform(_seed(decoding.seed, ids), decoding.max_new_tokens) for ids in rows], np.float32
        )
        self._decoding, self._step = decoding, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Take the logits (B, V) of the next tokens; give them back with all but the drawn ones at minus infinity."""
        numbers = torch.from_numpy(self._numbers[:, self._step]).to(scores.device)
        self._step += 1
        tokens = drawn(scores, numbers, self._decoding.temperature, self._decoding.top_p)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)


def drawn(logits: Tensor, numbers: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw tokens (B,) by uniform numbers (B,) in [0, 1) from the fewest likeliest tokens that have the probability
    `top_p` together (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751)."""
    probabilities = (logits.float() / temperature).softmax(-1)
    probabilities, tokens = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    sums = probabilities.cumsum(-1)
    last = ((sums - probabilities) < top_p).sum(-1, keepdim=True).clamp(min=1) - 1
    at = torch.searchsorted(sums, numbers[:, None] * sums.gather(-1, last), right=True)
    return tokens.gather(-1, torch.minimum(at, last))[:, 0]


def _seed(seed: int, ids: Sequence[int]) -> int:
    """Make the seed of a row's draws, out of its tokens and of the seed that was asked for."""
    digest = hashlib.sha256(np.array([seed, *ids], dtype="<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little")
