"""Targets of several tokens are scored here under a whole population of prompts.

Contexts with their targets are trees (`backends.local.trees`). The last layer is computed where a target stands, the
head too; the rest of the forward pass is the one of label scores. It is checked against a plain one.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.local.batching import micro_batches
from backends.local.check import TOLERANCES
from backends.local.encoding import TokenPair, TokenRow, prompt_id
from backends.local.evaluation import Evaluator, blocks
from backends.local.forward import Forward
from backends.local.head import Head
from backends.local.packing import packed_trunk
from backends.local.plans import Plan, kept, planned
from backends.local.rows import LocalPairs
from backends.local.structure import Structure
from backends.local.tree_attention import NAME, tree_attention
from backends.local.trees import Forest, TreeLayout, by_candidate, lines_of_trees
from bbt.draws import stable_choice
from bbt.errors import BackendError
from bbt.types import Prompts, RowScores

logger = logging.getLogger(__name__)

POSITIONS_AT_ONCE = 1024
"""The number of positions for which the whole vocabulary's logits are computed at once: 200 MB for 50,000 words in
fp32."""
N_PROMPT_TOKENS = 2
"""The number of prompt tokens in the rows of the check."""
LENGTHS = ((5, 3), (5, 1), (5, 2), (9, 2), (40, 8), (40, 20))
"""The numbers of tokens of the contexts and of their targets that are checked; those of one length are one context."""


class TargetEvaluator(Evaluator):
    """An evaluator that scores targets under whole populations; its `forward` runs a trunk that attends over trees."""

    def __init__(self, forward: Forward, head: Head, words: Tensor, token_budget: int) -> None:
        super().__init__(forward, head, words, token_budget)
        self.vocabulary = head.of_vocabulary()
        """The head that makes the logits of all words."""

    def log_likelihoods(self, prompts: Prompts, pairs: LocalPairs) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets in nats under soft prompts (n, T, H).

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        if not len(prompts):
            return np.empty((0, pairs.n_examples), np.float32)
        return self._fitting(pairs.forest, partial(self._of_forest, prompts[:, None], pairs.forest))

    @torch.inference_mode()
    def _of_forest(self, prompts: Prompts, forest: Forest, budget: int) -> RowScores:
        vectors = self.tensor(prompts)
        return np.concatenate([self._of_block(part, forest, budget) for part in blocks(vectors, forest, budget)])

    def _of_block(self, vectors: Tensor, forest: Forest, budget: int) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets under a block of prompts (n, 1, T, H)."""
        left = self._left(vectors, forest, None) if forest.n_prefix else {}
        found, places = [], []
        for plan in self._tree_plans(forest, len(vectors), budget):
            chosen, layout = plan.batch.chosen, plan.layout
            assert isinstance(layout, TreeLayout), "`_tree_plans` makes them"
            embeddings, call = self._embedded(plan, vectors[chosen], forest, None)
            call.left = {layer: (k[chosen], v[chosen]) for layer, (k, v) in left.items()} or None
            found.append(self._of_tokens(self.forward(embeddings, call), layout))
            candidates, which = layout.sequences
            places.append((candidates + chosen.start) * forest.n_pairs + which)
        # Summed here, in an order of its own, so that the same call gives the same bits on a GPU, too.
        tokens = torch.cat(found).double().cpu().numpy()
        sums = np.bincount(np.concatenate(places), tokens, len(vectors) * forest.n_pairs)
        return sums.reshape(-1, forest.n_pairs).astype(np.float32)

    def _tree_plans(self, forest: Forest, n: int, budget: int) -> Iterator[Plan]:
        """The plans of all trees under n candidates."""
        kernel, device = self.forward.kernel, self.words.device

        def make() -> Iterator[Plan]:
            lengths = [length - forest.n_prefix for length in forest.lengths]
            for batch in micro_batches(lengths, n, budget, self._one_length):
                layout, lines = forest.laid_out(batch, device), None
                if kernel is not None and layout.is_of_chains:
                    layout = by_candidate(layout)
                    lines = lines_of_trees(layout, batch.stop - batch.start, forest.n_prefix, kernel, device)
                plan = planned(batch, layout, forest.tokens, device, None, forest.n_prefix, lambda layout: layout)
                yield replace(plan, lines=lines)

        return kept(forest.plans, ("trees", n, budget), make)

    def _of_tokens(self, states: Tensor, layout: TreeLayout) -> Tensor:
        """Compute the log-likelihoods (M,) of a micro-batch's target tokens from the states (S, H) that are read. Each
        state that a token comes next after is put through the head once."""
        wanted, at = np.unique(layout.states, return_inverse=True)
        found = torch.empty(len(at), device=states.device)
        for start in range(0, len(wanted), POSITIONS_AT_ONCE):
            some = np.flatnonzero((start <= at) & (at < start + POSITIONS_AT_ONCE))
            logits = self.vocabulary(states[self.tensor(wanted[start : start + POSITIONS_AT_ONCE])])
            log_probs = functional.log_softmax(logits, -1)
            found[self.tensor(some)] = log_probs[self.tensor(at[some] - start), self.tensor(layout.targets[some])]
        return found


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
            encoded = LocalPairs(pairs, N_PROMPT_TOKENS, max_length if evaluator.shares_prefixes else 0)
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
    structure, words = scores.forward.structure, scores.words
    if scores.forward.packed is not None:
        for cut_last in (True, False):
            try:
                packed = _trunk_over_trees(structure, words, cut_last)
            except Exception as error:  # as in `backends.local.check`, an unknown architecture may raise anything
                logger.info("%s cannot be packed: %s", type(structure.trunk).__name__, error)
                continue
            if scores.forward.kernel is not None:
                yield Forward(structure, packed, scores.forward.kernel)
            yield Forward(structure, packed)
    yield Forward(structure, None)


def _trunk_over_trees(structure: Structure, words: Tensor, cut_last: bool) -> nn.Module:
    """Make a packed trunk that attends over trees."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    trunk: Any = packed_trunk(structure, words, cut_last)
    trunk.config._attn_implementation = NAME
    return cast(nn.Module, trunk)


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
            log_probs = functional.log_softmax(logits, -1)
            found.append(log_probs.gather(-1, ids[len(pair.context.ids) :, None]).sum())
            spreads.append(float(logits.std()))
    return torch.stack(found).view(len(prompts), -1).cpu(), max(spreads)
