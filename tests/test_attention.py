"""Attention over packed sequences is attention over each of them."""

import pytest
import torch
from tiny_models import DEVICE
from torch.nn.functional import scaled_dot_product_attention

from backends.local.attention import _after_prefix, _explicit, _merged, _within

N, HEADS, B, SIZE, N_LEFT = 2, 3, 4, 8, 5
WAYS = [_merged, _explicit, _after_prefix] if DEVICE == "cpu" else [_explicit, _after_prefix]
"""The fused attentions that are merged are a CPU's."""
both_ways = pytest.mark.parametrize("after_prefix", WAYS)


def states(length, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, HEADS, B, length, SIZE, generator=generator).to(DEVICE, dtype)


def expected(query, key, value, prefix, causal):
    """Every sequence alone, with its candidate's prefix written out before its keys and values."""
    rows = torch.empty_like(query)
    for n in range(N):
        for b in range(B):
            k, v = (torch.cat([left[n], own[n, :, b]], dim=1) for left, own in zip(prefix, (key, value), strict=True))
            seen = torch.ones(query.shape[3], k.shape[1], dtype=torch.bool, device=DEVICE)
            if causal:
                seen = seen.tril(k.shape[1] - query.shape[3])
            rows[n, :, b] = scaled_dot_product_attention(query[n, :, b], k, v, seen, scale=0.3)
    return rows


@both_ways
@pytest.mark.parametrize(("n_queries", "length", "causal"), [(1, 7, False), (7, 7, True), (20, 20, True)])
def test_a_prefix_is_seen_as_if_it_stood_in_every_row(after_prefix, n_queries, length, causal):
    query, key, value = states(n_queries, 0), states(length, 1), states(length, 2)
    prefix = (states(N_LEFT, 3)[:, :, 0], states(N_LEFT, 4)[:, :, 0])
    found = after_prefix(query, key, value, prefix, 0.3, causal)
    torch.testing.assert_close(found, expected(query, key, value, prefix, causal), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_prefix_each_row_sees_itself(causal):
    query, key, value = states(7, 0), states(7, 1), states(7, 2)
    nothing = (states(1, 3)[:, :, 0, :0], states(1, 4)[:, :, 0, :0])
    found = _within(query, key, value, 0.3, causal)
    torch.testing.assert_close(found, expected(query, key, value, nothing, causal), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [7, 16, 37])
def test_what_fills_the_last_tile_in_half_precision_is_not_seen(length):
    query, key, value = (states(length, seed, torch.bfloat16) for seed in range(3))
    nothing = (states(1, 3)[:, :, 0, :0], states(1, 4)[:, :, 0, :0])
    found = _within(query, key, value, 0.3, False)
    exact = expected(query.float(), key.float(), value.float(), nothing, False)
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


def test_large_scores_overflow_in_neither_way():
    query, key, value = 30 * states(20, 0), 30 * states(20, 1), states(20, 2)
    prefix = (30 * states(N_LEFT, 3)[:, :, 0], states(N_LEFT, 4)[:, :, 0])
    found = [way(query, key, value, prefix, 0.3, True) for way in WAYS[:2]]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
