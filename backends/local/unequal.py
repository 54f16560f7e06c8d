"""Sequences of unequal lengths attend in one call here, on GPUs that have a kernel for it.

The kernel is PyTorch's (`torch.nn.attention.varlen`), or flash-attn's where PyTorch's is missing or too old. It takes
the tokens as the model's products leave them, so nothing is copied around it. A candidate's prefix is read once for all
of its rows, by a second call, and the two are weighted by the sums of their exponentials.
"""

import importlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from backends.local.batching import Layout
from backends.local.device import on_device

if TYPE_CHECKING:
    from backends.local.attention import Attending

logger = logging.getLogger(__name__)

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float, bool], tuple[Tensor, Tensor]]
"""Attention within sequences: queries (Q, heads, size), keys and values (P, key heads, size), where the sequences begin
among queries and among keys (S + 1,), the longest of them among either, the scaling, and whether it is causal -> what
is found (Q, heads, size) and the logarithms (Q, heads) of the sums of exponentials."""

LARGEST_HEAD = 256
"""The largest head size of flash attention's kernels."""


@dataclass(frozen=True)
class Lines:
    """Where the S sequences of a micro-batch begin, candidate after candidate, for a kernel."""

    kernel: Kernel
    """The kernel that attends."""
    tokens: Tensor
    """(S + 1,) where each sequence begins among the tokens, and their number at the end."""
    reads: Tensor
    """(S + 1,) the same where the queries are one token a sequence."""
    longest: int
    """The tokens of the longest sequence."""
    of_candidates: tuple[Tensor, Tensor]
    """(n + 1,) where each candidate begins among the tokens, and among queries of one token a sequence."""
    prefixes: Tensor
    """(n + 1,) where each candidate's prefix begins among all prefixes laid end to end."""
    n_each: tuple[int, int]
    """The tokens and the sequences of each candidate."""
    n_prefix: int
    """The tokens of a prefix; 0 where there is none."""
    longest_read: int = 1
    """The most queries of a sequence where not all of its tokens are asked for."""

    def on(self, device: torch.device) -> "Lines":
        """The same lines on the device of a layer."""
        if self.tokens.device == device:
            return self
        token, read, prefixes = (one.to(device) for one in (self.tokens, self.reads, self.prefixes))
        of_candidates = self.of_candidates[0].to(device), self.of_candidates[1].to(device)
        return replace(self, tokens=token, reads=read, of_candidates=of_candidates, prefixes=prefixes)


def lines_of(layout: Layout, n_candidates: int, n_prefix: int, kernel: Kernel, device: torch.device) -> Lines:
    """Make the lines of a layout that lies candidate after candidate, one token of each sequence being read."""
    begins = np.flatnonzero(layout.positions == layout.positions[0])
    tokens = np.append(begins, len(layout.positions))
    n_each = len(layout.positions) // n_candidates, len(begins) // n_candidates
    each = np.arange(n_candidates + 1)
    begins_of = (tokens, np.arange(len(tokens)), each * n_each[0], each * n_each[1], each * n_prefix)
    token, read, of_tokens, of_reads, prefixes = (on_device(one.astype(np.int32), device) for one in begins_of)
    longest = int(np.diff(tokens).max())
    return Lines(kernel, token, read, longest, (of_tokens, of_reads), prefixes, n_each, n_prefix)


def attend(query: Tensor, key: Tensor, value: Tensor, packed: "Attending", scaling: float, causal: bool) -> Tensor:
    """Attend within sequences, and to the prefixes if there are any: queries, keys and values (1, heads, P, head size)
    -> (1, P, heads, head size)."""
    assert packed.lines is not None, "this way is taken where there are lines"
    lines = packed.lines.on(query.device)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    some = packed.given is not None
    begins, longest = (lines.reads, lines.longest_read) if some else (lines.tokens, lines.longest)
    own, own_sums = lines.kernel(q, k, v, begins, lines.tokens, longest, lines.longest, scaling, causal)
    if packed.left is None:
        return own[None]
    k, v = (states.transpose(1, 2).flatten(0, 1) for states in packed.left)
    begins, longest = lines.of_candidates[some], lines.n_each[some]
    left, left_sums = lines.kernel(q, k, v, begins, lines.prefixes, longest, lines.n_prefix, scaling, False)
    share = torch.sigmoid(left_sums - own_sums)[..., None]
    return torch.lerp(own, left, share.to(own.dtype))[None]


def kernel_for(words: Tensor) -> Kernel | None:
    """Find the kernel for a model whose word embeddings are these; None where there is none, as on every CPU, in fp32,
    and on GPUs older than Ampere."""
    if words.device.type != "cuda" or words.dtype is torch.float32:
        return None
    if torch.cuda.get_device_capability(words.device) < (8, 0):
        return None
    found = _of_torch() or _of_flash_attn()
    if found is None:
        logger.warning(
            "no kernel attends to sequences of unequal lengths in one call, so that each length is computed apart: "
            "PyTorch 2.11 or later has one, and so has flash-attn."
        )
    return found


def _of_torch() -> Kernel | None:
    """Make a kernel of PyTorch's, as far as it takes a scaling and gives the sums (2.11 and later)."""
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size", "return_aux"} <= takes.keys():
        return None
    groups: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in takes else {}

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, q_begins: Tensor, k_begins: Tensor, q_most: int, k_most: int, scale: float,
        causal: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if not groups and k.shape[1] != q.shape[1]:
            k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
        window = (-1, 0) if causal else (-1, -1)
        out, sums = cast(
            tuple[Tensor, Tensor],
            varlen_attn(
                q, k, v, q_begins, k_begins, q_most, k_most,
                return_aux=AuxRequest(lse=True), scale=scale, window_size=window, **groups,
            ),
        )  # fmt: skip
        return out, by_token(sums, q)

    return kernel


def _of_flash_attn() -> Kernel | None:
    """Make a kernel of flash-attn's, where it is installed."""
    try:
        flash_attn_varlen_func = importlib.import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, q_begins: Tensor, k_begins: Tensor, q_most: int, k_most: int, scale: float,
        causal: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, sums, _ = flash_attn_varlen_func(
            q, k, v, q_begins, k_begins, q_most, k_most, softmax_scale=scale, causal=causal, return_attn_probs=True
        )
        return out, by_token(sums, q)

    return kernel


def by_token(sums: Tensor, query: Tensor) -> Tensor:
    """The sums as (Q, heads): the kernels give (heads, Q), and PyTorch's documentation says (Q, heads)."""
    n_queries, heads, _ = query.shape
    return sums.transpose(0, 1) if sums.shape == (heads, n_queries) else sums
