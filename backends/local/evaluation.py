"""Populations through a frozen model: cut into micro-batches, embedded, scored."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from backends.local.attention import KeysAndValues
from backends.local.batching import MicroBatch, micro_batches
from backends.local.deep import KEPT_BYTES, Shared, lowest_difference
from backends.local.encoding import prompt_id
from backends.local.forward import Forward
from backends.local.packing import Pack, pack
from backends.local.rows import LocalRows
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Scores

T = TypeVar("T")


class Evaluator:
    """Scores whole populations; micro-batches have at most `token_budget` tokens."""

    def __init__(self, model: Any, token_budget: int) -> None:
        self.forward = Forward(model)
        self.token_budget = token_budget

    @property
    def shares_prefixes(self) -> bool:
        """Keys and values of a prefix are computed once a candidate."""
        return self.forward.packed is not None

    def label_scores(self, prompts: DeepPrompts, rows: LocalRows) -> Scores:
        """(n, L, T, H), L = 1 for prompts of the input alone, -> (n, B, K).

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        return self._fitting(rows, partial(self._scores, prompts, rows))

    def hidden_states(self, prompts: DeepPrompts, rows: LocalRows) -> Iterator[Tensor]:
        """(tokens, H) hidden states of all rows that enter layers 1, 2, ... under one prompt (1, L, T, H)."""
        vectors, below = self.forward.tensor(prompts), None
        for layer in range(1, prompts.shape[1]):
            states = self._fitting(rows, partial(self._states, layer, vectors, rows, below))
            below = Shared(layer, prompts[0, :layer], states)
            yield states

    def _fitting(self, rows: LocalRows, compute: Callable[[], T]) -> T:
        """The same again with half the budget, as long as memory runs out."""
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self.token_budget <= max(rows.lengths):
                    longest = f"one sequence of {max(rows.lengths)} tokens"
                    raise BackendError(f"{longest} does not fit into memory: {error}") from error
                self.token_budget //= 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _scores(self, prompts: DeepPrompts, rows: LocalRows) -> Scores:
        vectors = self.forward.tensor(prompts)
        shared = self._shared(prompts, vectors, rows) if prompts.shape[1] > 1 else None
        # Keys and values of prefixes are held for as many candidates as have room in one micro-batch.
        block = max(1, self.token_budget // rows.n_prefix) if rows.n_prefix else len(prompts)
        with self.forward.scoring(rows.label_ids):
            scores = [self._scores_of_block(part, rows, shared) for part in torch.split(vectors, block)]
        return np.asarray(torch.cat(scores).cpu().numpy(), dtype=np.float32)

    def _scores_of_block(self, vectors: Tensor, rows: LocalRows, shared: Shared | None) -> Tensor:
        """(n, L, T, H) -> (n, B, K)."""
        scores = torch.empty(len(vectors), rows.n_examples, len(rows.label_ids), device=vectors.device)
        prefix = self._prefix(vectors, rows, shared) if rows.n_prefix else None
        for batch in self._batches([length - rows.n_prefix for length in rows.lengths], len(vectors)):
            tokens = pack(batch, rows.starts, rows.lengths, rows.reads, rows.n_prefix)
            left = prefix and {module: (k[batch.chosen], v[batch.chosen]) for module, (k, v) in prefix.items()}
            with self._embedded(tokens, vectors[batch.chosen], rows, shared) as embeddings:
                candidates, which = map(self.forward.tensor, tokens.sequences)
                scores[candidates + batch.start, which] = self.forward.logits(embeddings, tokens, left).float()
        return scores

    def _prefix(self, vectors: Tensor, rows: LocalRows, shared: Shared | None) -> KeysAndValues:
        """Keys and values of the rows' common left part, once for each candidate."""
        tokens = pack(MicroBatch(0, len(vectors), (0,)), rows.starts, [rows.n_prefix], [rows.n_prefix - 1])
        with self._embedded(tokens, vectors, rows, shared) as embeddings:
            return self.forward.keys_and_values(embeddings, tokens)

    def _shared(self, prompts: DeepPrompts, vectors: Tensor, rows: LocalRows) -> Shared | None:
        """What enters the lowest layer at which the candidates differ; None: nothing is shared, or it is too large."""
        kept = rows.shared if rows.shared and rows.shared.holds_for(prompts) else None
        layer = lowest_difference(prompts) if len(prompts) > 1 else kept.layer if kept else 0
        if kept and kept.layer == layer:
            return kept
        words = self.forward.words
        if not layer or rows.n_tokens * words.shape[1] * words.itemsize > KEPT_BYTES:
            return None
        states = self._states(layer, vectors[:1], rows, kept if kept and kept.layer < layer else None)
        rows.shared = Shared(layer, prompts[0, :layer].copy(), states)
        return rows.shared

    def _states(self, layer: int, vectors: Tensor, rows: LocalRows, below: Shared | None) -> Tensor:
        """(tokens, H) hidden states of all rows that enter a layer, from those that enter a lower one if given."""
        states = self.forward.words.new_empty(rows.n_tokens, self.forward.words.shape[1])
        with self.forward.scoring(rows.label_ids):
            for batch in self._batches(rows.lengths, 1):
                tokens = pack(batch, rows.starts, rows.lengths, rows.reads)
                with (
                    self._embedded(tokens, vectors, rows, below) as embeddings,
                    self.forward.layers.until(layer) as reached,
                ):
                    self.forward.logits(embeddings, tokens)
                states[self.forward.tensor(tokens.source)] = reached[0].flatten(0, 1)
        return states

    def _batches(self, lengths: list[int], n_candidates: int) -> list[MicroBatch]:
        return micro_batches(lengths, n_candidates, self.token_budget, one_length=self.forward.packed is None)

    @contextmanager
    def _embedded(self, tokens: Pack, vectors: Tensor, rows: LocalRows, below: Shared | None) -> Iterator[Tensor]:
        """Input embeddings (P, H) under prompts (n, L, T, H). Inside, the model adds the deeper prompts and the
        difference from the anchor in their places, and goes on from the states `below`."""
        tensor, layers, trunk = self.forward.tensor, self.forward.layers, self.forward.trunk
        ids = rows.tokens[tokens.source]
        soft = np.flatnonzero(ids < 0)
        at, who, which = map(tensor, (soft, tokens.candidates[soft], prompt_id(ids[soft])))
        anchor = rows.anchor if len(soft) else None

        def added(states: Tensor, prompt: Tensor) -> Tensor:
            states.view(-1, states.shape[-1]).index_add_(0, at, prompt.to(states.dtype))
            return states

        def enter(layer: int, states: Tensor) -> Tensor:
            if below and layer == below.layer:
                states = below.states[tensor(tokens.source)].view(states.shape)
            return added(states, vectors[who, layer, which]) if layer else states

        embeddings = self.forward.words[tensor(np.maximum(ids, 0))]
        embeddings[at] = (vectors[who, 0, which] if anchor is None else anchor[0, which]).to(embeddings.dtype)
        with ExitStack() as stack:
            if anchor is not None:
                offset = vectors[who, 0, which] - anchor[0, which]
                stack.enter_context(trunk.after_layernorm(lambda states: added(states, offset)))
            if vectors.shape[1] > 1:
                stack.enter_context(layers.entered(enter, below.layer if below else 0))
            yield embeddings


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
