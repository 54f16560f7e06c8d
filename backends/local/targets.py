"""Targets of several tokens are scored here under a whole population of prompts.

The forward pass is the one of label scores but for its last layer, of which several tokens a row are read. It is
checked against a plain one.
"""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.local.check import TOLERANCES
from backends.local.encoding import TokenPair, TokenRow, prompt_id
from backends.local.evaluation import Evaluator, blocks
from backends.local.forward import Forward
from backends.local.head import Head
from backends.local.packing import packed_trunk
from backends.local.rows import LocalPairs, PairRows
from bbt.draws import stable_choice
from bbt.errors import BackendError
from bbt.types import Prompts, RowScores

logger = logging.getLogger(__name__)

POSITIONS_AT_ONCE = 1024
"""The number of positions for which the whole vocabulary's logits are computed at once: 200 MB for 50,000 words in
fp32."""
N_PROMPT_TOKENS = 2
"""The number of prompt tokens in the rows of the check."""
LENGTHS = ((5, 3), (5, 1), (9, 2), (40, 8))
"""The numbers of tokens of the contexts and of their targets that are checked; the first two have one context."""


class TargetEvaluator(Evaluator):
    """An evaluator that scores targets under whole populations; its `forward` computes the last layer for all
    tokens."""

    def __init__(self, forward: Forward, head: Head, words: Tensor, token_budget: int) -> None:
        super().__init__(forward, head, words, token_budget)
        self._vocabulary = head.of_vocabulary()

    def log_likelihoods(self, prompts: Prompts, pairs: LocalPairs) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets in nats under soft prompts (n, T, H).

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        found = np.empty((len(prompts), pairs.n_examples), np.float32)
        for unit in pairs.units:
            found[:, unit.which] = self._fitting(unit, partial(self._of_unit, prompts[:, None], unit))
        return found

    @torch.inference_mode()
    def _of_unit(self, prompts: Prompts, rows: PairRows, budget: int) -> RowScores:
        parts = [self._of_block(part, rows, budget) for part in blocks(self.tensor(prompts), rows, budget)]
        return np.asarray(torch.cat(parts).cpu().numpy())

    def _of_block(self, vectors: Tensor, rows: PairRows, budget: int) -> Tensor:
        """Compute the log-likelihoods (n, b) of the targets of b rows under a block of prompts (n, 1, T, H)."""
        sums = torch.zeros(len(vectors), len(rows.pairs), device=vectors.device)
        for batch, layout, states in self._passes(vectors, rows, None, budget, rows.counts):
            candidates, which = layout.sequences
            begun = np.flatnonzero(np.diff(candidates * len(rows.pairs) + which, prepend=-1))
            targets = np.concatenate([rows.pairs[row].target for row in which[begun]])
            found = self._of_tokens(states, self.tensor(targets))
            sums.index_put_((self.tensor(candidates + batch.start), self.tensor(which)), found, accumulate=True)
        return sums

    def _of_tokens(self, states: Tensor, ids: Tensor) -> Tensor:
        """Compute the log-likelihoods (S,) of tokens (S,) that come next after hidden states (S, H)."""
        parts = zip(*(torch.split(one, POSITIONS_AT_ONCE) for one in (states, ids)), strict=True)
        return torch.cat([log_likelihoods(self._vocabulary(some), which) for some, which in parts])


def log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """Compute the log-likelihoods (S,) of tokens (S,) from logits (S, V)."""
    return logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def checked_target_evaluator(model: Any, scores: Evaluator, max_length: int) -> TargetEvaluator:
    """Make the evaluator of targets beside the one of label scores. It is packed where that agrees with a plain forward
    pass, else it computes each row apart.

    Raises:
        BackendError: no way of evaluating agrees with a plain forward pass.
    """
    pairs = _pairs(max_length, len(scores.words))
    prompts = scores.words[torch.tensor([[7, 11], [13, 17]], device=scores.words.device) % len(scores.words)].float()
    expected, spread = _plain(model, scores.words, pairs, prompts)
    tolerance = TOLERANCES[scores.words.dtype] * spread * max(len(pair.target) for pair in pairs)
    for forward in _ways(scores):
        evaluator = TargetEvaluator(forward, scores.head, scores.words, scores.token_budget)
        try:
            encoded = LocalPairs(pairs, N_PROMPT_TOKENS, evaluator.shares_prefixes)
            found = torch.from_numpy(evaluator.log_likelihoods(prompts.cpu().numpy(), encoded))
        except Exception as error:  # whatever an unknown architecture makes of what it does not know
            logger.info("%s: %s", type(model).__name__, error)
            continue
        if not bool(expected.isfinite().all()) or bool((found - expected).abs().max() <= tolerance):
            return evaluator
    raise BackendError(
        f"{type(model).__name__} is a kind of model whose targets bbt cannot score: their likelihoods were not those "
        "of a plain forward pass of transformers."
    )


def _ways(scores: Evaluator) -> Iterator[Forward]:
    """Yield the ways to compute a forward pass, from the faster to the simpler."""
    structure = scores.forward.structure
    if scores.forward.packed is not None:
        packed = packed_trunk(structure, scores.words, cut_last=False)
        if scores.forward.kernel is not None:
            yield Forward(structure, packed, scores.forward.kernel)
        yield Forward(structure, packed)
    yield Forward(structure, None)


def _pairs(max_length: int, n_words: int) -> list[TokenPair]:
    """Make pairs of random tokens after a prompt, as `LENGTHS` says."""
    pairs = []
    for length, n_target in LENGTHS:
        length = min(length, max_length - n_target)
        prompt = [prompt_id(j) for j in range(N_PROMPT_TOKENS)]
        ids = (*prompt, *(int(i) for i in stable_choice(length, n_words, length - len(prompt))))
        target = tuple(int(i) for i in stable_choice(100 + n_target, n_words, n_target))
        pairs.append(TokenPair(TokenRow(ids, length - 1, False), target))
    return pairs


@torch.inference_mode()
def _plain(model: Any, words: Tensor, pairs: list[TokenPair], prompts: Tensor) -> tuple[Tensor, float]:
    """Compute the log-likelihoods (n, B) by the model's own forward pass, one row and one prompt at a time, and the
    largest standard deviation of a row's logits."""
    found, spreads = [], []
    for prompt in prompts:
        for pair in pairs:
            ids = torch.tensor([max(0, i) for i in (*pair.context.ids, *pair.target)], device=words.device)
            embeddings = words[ids[:-1]]
            embeddings[:N_PROMPT_TOKENS] = prompt.to(words.dtype)
            logits = model(inputs_embeds=embeddings[None]).logits[0, pair.context.read :].float()
            found.append(log_likelihoods(logits, ids[len(pair.context.ids) :]).sum())
            spreads.append(float(logits.std()))
    return torch.stack(found).view(len(prompts), -1).cpu(), max(spreads)
