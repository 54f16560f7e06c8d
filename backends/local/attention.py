"""Attention over packed sequences lets each token see its own sequence and the prefix of its candidate.

Registered with transformers as an attention implementation, so that it serves every model that lets its attention
be chosen. Within a sequence it is PyTorch's fused attention, for all sequences of one length at once; a GPU's kernel
for sequences of unequal lengths takes all of them (`unequal`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.local.batching import Group
from backends.local.unequal import LARGEST_HEAD, Lines, attend

NAME = "bbt_packed"

FEW_QUERIES = 16
"""Below so many queries a sequence, two fused attentions cost more to start than explicit products."""

TILE = 16
"""The matrix units' products are fast for so many bf16 keys at a time; those left over are slow."""

NOT_UNDERSTOOD = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments by which some models ask for more than softmax(q k) v; they are not supported."""


@dataclass
class Attending:
    """What the attention of one layer is told of the tokens that it is given."""

    groups: tuple[Group, ...]
    """How the tokens lie."""
    left: tuple[Tensor, Tensor] | None = None
    """Keys and values, each (n, heads, N, head size), of what stands left of every sequence of a candidate."""
    given: tuple[Tensor, Tensor] | None = None
    """Keys and values of all tokens, each (1, heads, P, head size): the queries are of one token a sequence."""
    only_keys: bool = False
    """Whether nothing is attended to, since keys and values are all that is wanted."""
    kept: list[tuple[Tensor, Tensor]] | None = None
    """Where there is a list, keys and values of all tokens are put into it."""
    lines: Lines | None = None
    """Where the sequences begin, for a kernel that takes all of them (none: they attend length by length)."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Attending,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend: queries, keys and values (1, heads, P, head size) -> (1, P, heads, head size).

    Raises:
        NotImplementedError: the model wants more than softmax(q k) v.
    """
    if attention_mask is not None or any(rest.get(name) is not None for name in NOT_UNDERSTOOD):
        raise NotImplementedError(f"{type(module).__name__} is not plain attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    reads = packed.given is not None
    if packed.given is not None:
        key, value = packed.given
    elif packed.lines is None:
        key, value = (_every_head(states, query.shape[1]) for states in (key, value))
    if packed.kept is not None:
        packed.kept.append((key, value))
    if packed.only_keys:
        return value.new_zeros(()).expand(1, query.shape[2], query.shape[1], value.shape[-1]), None
    causal = bool(getattr(module, "is_causal", False)) and not reads
    if packed.lines is not None:
        if query.shape[-1] > LARGEST_HEAD or query.shape[-1] != value.shape[-1]:
            raise NotImplementedError(f"heads of {query.shape[-1]} and {value.shape[-1]} are not those of the kernel")
        return attend(query, key, value, packed, scaling, causal), None
    out = torch.empty(query.shape[2], query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
    asked = token = 0
    for group in packed.groups:
        queries = slice(asked, asked + group.n_candidates * group.n_rows * (1 if reads else group.length))
        tokens = slice(token, token + group.n_tokens)
        q = _by_sequence(query[0, :, queries], group)
        k, v = (_by_sequence(states[0, :, tokens], group) for states in (key, value))
        if packed.left is None:
            found = _within(q, k, v, scaling, causal)
        else:
            found = _after_prefix(q, k, v, packed.left, scaling, causal)
        _by_sequence(out[queries].transpose(0, 1), group).copy_(found)
        asked, token = queries.stop, tokens.stop
    return out[None], None


def _every_head(states: Tensor, n_heads: int) -> Tensor:
    """The keys or values that several query heads share, once for each of these heads."""
    return states if states.shape[1] == n_heads else states.repeat_interleave(n_heads // states.shape[1], dim=1)


def _by_sequence(states: Tensor, group: Group) -> Tensor:
    """The states of a group's tokens by sequence: (heads, tokens, head size) -> (n, heads, b, N, head size)."""
    heads, _, size = states.shape
    return states.view(heads, group.n_candidates, group.n_rows, -1, size).transpose(0, 1)


def _within(query: Tensor, key: Tensor, value: Tensor, scaling: float, causal: bool) -> Tensor:
    """Attend within sequences: everything is of shape (n, heads, b, N, head size)."""
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    mask = None
    if not causal and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] > 1:
        k, v, mask = _whole_tiles(k, v)
    found = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scaling)
    return found.view(query.transpose(1, 2).shape).transpose(1, 2)


def _whole_tiles(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys and values (S, heads, N, size) with masked ones after them up to a multiple of TILE, and the mask."""
    length = key.shape[2]
    missing = -length % TILE
    if not missing:
        return key, value, None
    k, v = (functional.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2) for x in (key, value))
    mask = key.new_zeros(length + missing)
    mask[length:] = float("-inf")
    return k, v, mask.expand(length, length + missing)


def _after_prefix(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], scaling: float, causal: bool
) -> Tensor:
    """Attend within sequences and to the prefix of their candidate, without a copy of it for each sequence."""
    if query.device.type == "cpu" and query.shape[3] >= FEW_QUERIES:
        return _merged(query, key, value, prefix, scaling, causal)
    return _explicit(query, key, value, prefix, scaling, causal)


def _merged(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], scaling: float, causal: bool
) -> Tensor:
    """Attend twice, by fused attentions, and weight the two by the sums of their exponentials."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    n, heads, b, length, size = query.shape
    q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    own, own_sum = fused(q, k, v, 0.0, causal, scale=scaling)
    left, left_sum = fused(query.reshape(n, heads, b * length, size), *prefix, 0.0, False, scale=scaling)
    own = own.view(n, b, heads, length, size).transpose(1, 2)
    own_sum = own_sum.view(n, b, heads, length).transpose(1, 2)
    share = torch.sigmoid(left_sum.view(n, heads, b, length) - own_sum)[..., None]
    return torch.lerp(own.float(), left.view(query.shape).float(), share).to(own.dtype)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], scaling: float, causal: bool
) -> Tensor:
    """Attend by one softmax over the scores of both, as batched matrix products."""
    n, heads, b, length, size = query.shape
    q = torch.mul(query, scaling, out=torch.empty(query.shape, dtype=query.dtype, device=query.device))
    k, v = (states.reshape(-1, states.shape[3], size) for states in (key, value))
    prefix_key, prefix_value = (states.flatten(0, 1) for states in prefix)
    n_left = prefix_key.shape[1]
    own = torch.bmm(q.view(-1, length, size), k.transpose(1, 2))
    if causal:
        own.masked_fill_(torch.ones_like(own[0], dtype=torch.bool).triu_(1), float("-inf"))
    left = torch.bmm(q.view(n * heads, b * length, size), prefix_key.transpose(1, 2))
    scores = torch.cat([left.view(-1, length, n_left), own], dim=-1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    from_left = torch.bmm(weights[..., :n_left].reshape(n * heads, b * length, n_left), prefix_value)
    return torch.baddbmm(from_left.view(-1, length, size), weights[..., n_left:], v).view(query.shape)


def of_candidates(states: Tensor, group: Group) -> Tensor:
    """The keys or values (1, heads, P, head size) of one sequence for each candidate -> (n, heads, N, head size)."""
    return _by_sequence(states[0], group)[:, :, 0]
