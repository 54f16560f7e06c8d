"""Attention over trees lets each token see its context, its own target, and the prefix of its candidate.

It is registered with transformers beside `backends.local.attention`, for the models that score targets: causal ones.
In the last layer the queries are those of the tokens at the end of each tree alone. A GPU's kernel for sequences of
unequal lengths takes trees that are chains (`unequal`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.local.attention import FEW_QUERIES, NOT_UNDERSTOOD, Attending
from backends.local.batching import Group
from backends.local.trees import TreeGroup
from backends.local.unequal import LARGEST_HEAD, attend

NAME = "bbt_trees"


def tree_attention(
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
    n_heads, n_asked = query.shape[1:3]
    if packed.given is not None:
        key, value = packed.given
    elif packed.lines is None:
        key, value = (_every_head(states, n_heads) for states in (key, value))
    if packed.kept is not None:
        packed.kept.append((key, value))
    if packed.only_keys:
        return value.new_zeros(()).expand(1, n_asked, n_heads, value.shape[-1]), None
    if packed.lines is not None:
        if query.shape[-1] > LARGEST_HEAD or query.shape[-1] != value.shape[-1]:
            raise NotImplementedError(f"heads of {query.shape[-1]} and {value.shape[-1]} are not those of the kernel")
        return attend(query, key, value, packed, scaling, causal=True), None
    left = packed.left and (_every_head(packed.left[0], n_heads), _every_head(packed.left[1], n_heads))
    out = query.new_empty(n_asked, n_heads, value.shape[-1])
    asked = token = 0
    for group in packed.groups:
        n_queries = group.n_read if packed.given and isinstance(group, TreeGroup) else group.length
        queries = slice(asked, asked + group.n_candidates * group.n_rows * n_queries)
        tokens = slice(token, token + group.n_tokens)
        q = _by_sequence(query[0, :, queries], group)
        k, v = (_by_sequence(states[0, :, tokens], group) for states in (key, value))
        _by_sequence(out[queries].transpose(0, 1), group).copy_(_attended(q, k, v, left, group, scaling))
        asked, token = queries.stop, tokens.stop
    return out[None], None


def _every_head(states: Tensor, n_heads: int) -> Tensor:
    """The keys or values (n, key heads, N, head size), once for each head that shares them."""
    return states if states.shape[1] == n_heads else states.repeat_interleave(n_heads // states.shape[1], dim=1)


def _by_sequence(states: Tensor, group: Group) -> Tensor:
    """View a group's tokens by sequence: (heads, tokens, head size) -> (n, b, heads, N, head size)."""
    heads, _, size = states.shape
    return states.view(heads, group.n_candidates, group.n_rows, -1, size).permute(1, 2, 0, 3, 4)


def _attended(
    query: Tensor, key: Tensor, value: Tensor, left: tuple[Tensor, Tensor] | None, group: Group, scaling: float
) -> Tensor:
    """Attend within sequences, and to the prefix of their candidate: all is of shape (n, b, heads, N, head size), and
    the queries are those of the last tokens."""
    n, b, heads, n_queries, size = query.shape
    q, k, v = (states.flatten(0, 1) for states in (query, key, value))
    mask = _mask(group, n_queries, query)
    causal = mask is None
    if left is None:
        found = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scaling)
        return found.view(query.shape)
    merged = query.device.type == "cpu" and n_queries >= FEW_QUERIES
    if not merged:
        return _explicit(query, k, v, left, mask, scaling)
    # Attend twice by fused attentions, and weight the two by the sums of their exponentials.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own, own_sum = fused(q, k, v, 0.0, causal, attn_mask=mask, scale=scaling)
    together = query.transpose(1, 2).reshape(n, heads, b * n_queries, size)
    rest, rest_sum = (
        part.view(n, heads, b, n_queries, -1).transpose(1, 2) for part in fused(together, *left, 0.0, scale=scaling)
    )
    share = torch.sigmoid(rest_sum - own_sum.view(n, b, heads, n_queries, 1))
    return torch.lerp(own.view(query.shape).float(), rest.float(), share).to(query.dtype)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, left: tuple[Tensor, Tensor], mask: Tensor | None, scaling: float
) -> Tensor:
    """Attend by one softmax over the scores of both, as batched matrix products."""
    n, b, heads, n_queries, size = query.shape
    q = query * scaling
    own = q.flatten(0, 1) @ key.transpose(-1, -2)
    if mask is None:
        hidden = torch.ones(own.shape[-2:], dtype=torch.bool, device=own.device).triu_(1)
        own.masked_fill_(hidden, float("-inf"))
    else:
        own += mask
    together = q.transpose(1, 2).reshape(n, heads, b * n_queries, size)
    rest = (together @ left[0].transpose(-1, -2)).view(n, heads, b, n_queries, -1).transpose(1, 2)
    weights = torch.softmax(torch.cat([rest, own.view(n, b, heads, n_queries, -1)], -1), -1, dtype=torch.float32)
    weights = weights.to(value.dtype)
    of_rest = weights[..., : rest.shape[-1]].transpose(1, 2).reshape(n, heads, b * n_queries, -1) @ left[1]
    of_own = weights[..., rest.shape[-1] :].flatten(0, 1) @ value
    return of_rest.view(n, heads, b, n_queries, -1).transpose(1, 2) + of_own.view(query.shape)


def _mask(group: Group, n_queries: int, like: Tensor) -> Tensor | None:
    """What is added to the attention of the last tokens of a group's sequences: (n b, 1, N', N), or (N', N) for all;
    none where each sequence is a chain that is asked for whole."""
    mask = group.mask if isinstance(group, TreeGroup) else None
    if mask is not None:
        mask = mask[:, -n_queries:].to(like.device, like.dtype)
        return mask.expand(group.n_candidates, *mask.shape).flatten(0, 1)[:, None]
    if n_queries == group.length:
        return None
    hidden = torch.full((n_queries, group.length), float("-inf"), dtype=like.dtype, device=like.device)
    return hidden.triu_(1 + group.length - n_queries)
