"""Features are what the frozen model makes of whole rows: their last hidden states, and how likely it finds their
tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.local.batching import micro_batches

HEAD_TOKENS = 1024
"""Positions for which the whole vocabulary's logits are computed at once: 200 MB for 50,000 words in fp32."""


@torch.inference_mode()
def hidden_states(trunk: Any, rows: Sequence[Tensor], token_budget: int) -> list[Tensor]:
    """The last hidden states (N, H) of each row of token ids (N,), in micro-batches of at most `token_budget`
    tokens."""
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in micro_batches([len(row) for row in rows], 1, token_budget):
        ids, mask = _padded([rows[i] for i in batch.rows])
        states = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        for i, state in zip(batch.rows, states, strict=True):
            found[i] = state[: len(rows[i])].float().cpu()
    return found


@torch.inference_mode()
def masked_log_likelihoods(model: Any, row: Tensor, places: Sequence[int], mask_id: int) -> Tensor:
    """The log-likelihoods (P,) of a row's tokens at P places, each masked in turn."""
    at = torch.tensor(places, device=row.device)
    found = []
    for some in torch.split(at, max(1, HEAD_TOKENS // len(row))):
        ids = row.repeat(len(some), 1)
        ids[torch.arange(len(some)), some] = mask_id
        logits = model(input_ids=ids).logits[torch.arange(len(some)), some]
        found.append(_of_tokens(logits, row[some]))
    return torch.cat(found).cpu()


@torch.inference_mode()
def causal_log_likelihoods(model: Any, row: Tensor) -> Tensor:
    """The log-likelihoods (N - 1,) of a row's tokens from the second on, given what stands left of them."""
    return _of_tokens(model(input_ids=row[None]).logits[0, :-1], row[1:]).cpu()


def _of_tokens(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities (P,) that logits (P, V) give to the tokens that stand there."""
    return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The token ids (B, N) filled up at the right, and the mask (B, N) of what counts."""
    return pad_sequence(list(rows), batch_first=True), pad_sequence([torch.ones_like(row) for row in rows], True)
