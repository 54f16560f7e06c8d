"""An evaluator puts populations through a frozen model: they are cut into micro-batches, embedded and scored."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from backends.local.batching import Layout, MicroBatch, laid_out, micro_batches, reading_on
from backends.local.encoding import prompt_id
from backends.local.forward import Forward, KeysAndValues, Pass
from backends.local.head import Head
from backends.local.rows import KEPT_BYTES, LaidRows, LocalRows, Shared, lowest_difference
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Scores

T = TypeVar("T")


class Evaluator:
    """A scorer of whole populations, in micro-batches of at most `token_budget` tokens.

    Safe to be called from several threads: what belongs to a call travels in its arguments. Models that keep the
    frequencies of the last batch are called by one thread at a time.
    """

    def __init__(self, forward: Forward, head: Head, words: Tensor, token_budget: int) -> None:
        self.forward, self.head, self.words, self.token_budget = forward, head, words, token_budget
        self._one_length = forward.packed is None or forward.structure.depends_on_length
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if forward.structure.depends_on_length else nullcontext()
        )

    @property
    def trunk(self) -> nn.Module:
        """The module that is called once for each micro-batch before the rows' head."""
        return self.forward.packed or self.forward.structure.trunk

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values of a prefix are computed once for each candidate."""
        return not self._one_length

    def label_scores(self, prompts: DeepPrompts, rows: LocalRows) -> Scores:
        """The scores (n, B, K) of deep prompts (n, L, T, H); L = 1 for prompts of the input alone.

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        return self._fitting(rows.lengths, partial(self._scores, prompts, rows))

    def hidden_states(self, prompts: DeepPrompts, rows: LocalRows) -> Iterator[Tensor]:
        """Yield the hidden states (tokens, H) of all rows that enter layers 1, 2, ... under one prompt (1, L, T, H)."""
        vectors, below = self.tensor(prompts), None
        for layer in range(1, prompts.shape[1]):
            states = self._fitting(rows.lengths, partial(self._states, layer, vectors, rows, below))
            below = Shared(layer, prompts[0, :layer], states)
            yield states

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device, floats as float32. It is copied because PyTorch warns of arrays that are
        read-only."""
        dtype = np.float32 if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype=dtype)).to(self.words.device, non_blocking=True)

    def _fitting(self, lengths: Sequence[int], compute: Callable[[int], T]) -> T:
        """What `compute` makes with the budget; where memory runs out, it is tried again with half of the budget."""
        while True:
            budget = self.token_budget
            try:
                with self._turn:
                    return compute(budget)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if budget <= max(lengths):
                    longest = f"one sequence of {max(lengths)} tokens"
                    raise BackendError(f"{longest} does not fit into memory: {error}") from error
                self.token_budget = min(self.token_budget, budget // 2)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    @torch.inference_mode()
    def _scores(self, prompts: DeepPrompts, rows: LocalRows, budget: int) -> Scores:
        vectors = self.tensor(prompts)
        shared = self._shared(prompts, vectors, rows, budget) if prompts.shape[1] > 1 else None
        scores = [self._scores_of_block(part, rows, shared, budget) for part in blocks(vectors, rows, budget)]
        return np.asarray(torch.cat(scores).cpu().numpy(), dtype=np.float32)

    def _scores_of_block(self, vectors: Tensor, rows: LocalRows, shared: Shared | None, budget: int) -> Tensor:
        """The scores (n, B, K) of as many candidates' vectors (n, L, T, H) as are computed at a time."""
        scores = torch.empty(len(vectors), rows.n_examples, len(rows.label_ids), device=vectors.device)
        for batch, layout, states in self._passes(vectors, rows, shared, budget):
            candidates, which = map(self.tensor, layout.sequences)
            scores[candidates + batch.start, which] = rows.head(states)
        return scores

    def _passes(
        self, vectors: Tensor, rows: LaidRows, shared: Shared | None, budget: int, every: Sequence[int] | None = None
    ) -> Iterator[tuple[MicroBatch, Layout, Tensor]]:
        """The micro-batches of a block of candidates (n, L, T, H), where their tokens lie, and the last hidden states
        (S, H) that are read. With `every` row's number of places, so many are read of it from its `read` on."""
        left = self._left(vectors, rows, shared) if rows.n_prefix else None
        lengths = [length - rows.n_prefix for length in rows.lengths]
        for batch in micro_batches(lengths, len(vectors), budget, self._one_length):
            layout = laid_out(batch, rows.starts, rows.lengths, rows.reads, rows.n_prefix)
            if every is not None:
                layout = reading_on(layout, every)
            embeddings, call = self._embedded(layout, vectors[batch.chosen], rows, shared)
            if left:
                call.left = {layer: (k[batch.chosen], v[batch.chosen]) for layer, (k, v) in left.items()}
            yield batch, layout, self.forward(embeddings, call)

    def _left(self, vectors: Tensor, rows: LaidRows, shared: Shared | None) -> KeysAndValues:
        """The keys and values of the rows' common left part, once for each candidate."""
        layout = laid_out(MicroBatch(0, len(vectors), (0,)), rows.starts, [rows.n_prefix], [rows.n_prefix - 1])
        embeddings, call = self._embedded(layout, vectors, rows, shared)
        call.only_keys = True
        self.forward(embeddings, call)
        return call.kept

    def _shared(self, prompts: DeepPrompts, vectors: Tensor, rows: LocalRows, budget: int) -> Shared | None:
        """The states that enter the lowest layer at which the candidates differ; None where nothing is shared, or it is
        too large."""
        found = rows.shared
        kept = found if found and found.holds_for(prompts) else None
        layer = lowest_difference(prompts) if len(prompts) > 1 else kept.layer if kept else 0
        if kept and kept.layer == layer:
            return kept
        if not layer or rows.n_tokens * prompts.shape[-1] * self.words.itemsize > KEPT_BYTES:
            return None
        below = kept if kept and kept.layer < layer else None
        shared = Shared(layer, prompts[0, :layer].copy(), self._states(layer, vectors[:1], rows, below, budget))
        rows.shared = shared
        return shared

    @torch.inference_mode()
    def _states(self, layer: int, vectors: Tensor, rows: LocalRows, below: Shared | None, budget: int) -> Tensor:
        """The hidden states (tokens, H) of all rows that enter a layer, computed from those that enter a lower one if
        they are given."""
        states: Tensor | None = None
        for batch in micro_batches(rows.lengths, 1, budget, self._one_length):
            layout = laid_out(batch, rows.starts, rows.lengths, rows.reads)
            embeddings, call = self._embedded(layout, vectors, rows, below)
            call.stop = layer
            self.forward(embeddings, call)
            assert call.reached is not None, "a forward pass goes through all layers"
            if states is None:
                states = call.reached.new_empty(rows.n_tokens, call.reached.shape[-1])
            states[self.tensor(layout.source)] = call.reached
        assert states is not None, "there are rows"
        return states

    def _embedded(self, layout: Layout, vectors: Tensor, rows: LaidRows, below: Shared | None) -> tuple[Tensor, Pass]:
        """The input embeddings (P, E) under prompts (n, L, T, H), and the pass that adds the deeper prompts and the
        difference from the anchor in their places, and goes on from the states `below`."""
        ids = rows.tokens[layout.source]
        soft = np.flatnonzero(ids < 0)
        at, who, which = map(self.tensor, (soft, layout.candidates[soft], prompt_id(ids[soft])))
        call = Pass(layout.groups, self.tensor(layout.positions), self.tensor(layout.read), at)
        if below:
            call.first, call.states = below.layer, below.states[self.tensor(layout.source)]
        for layer in range(max(1, call.first), vectors.shape[1]):
            call.offsets[layer] = vectors[who, layer, which]
        embeddings = self.words[self.tensor(np.maximum(ids, 0))]
        if not len(soft):
            return embeddings, call
        prompt = vectors[who, 0, which]
        if rows.anchor is None:
            embeddings[at] = prompt.to(embeddings.dtype)
        else:
            embeddings[at] = rows.anchor[0, which].to(embeddings.dtype)
            call.offsets[0] = self._after_layernorm(prompt - rows.anchor[0, which])
        return embeddings, call

    def _after_layernorm(self, offset: Tensor) -> Tensor:
        """What stands after the embedding LayerNorm, (M, E), as it is where the first layer begins, (M, H)."""
        projection = self.forward.structure.projection
        return offset if projection is None else functional.linear(offset, projection.weight.float())


def blocks(vectors: Tensor, rows: LaidRows, budget: int) -> tuple[Tensor, ...]:
    """Candidates (n, L, T, H) in blocks: keys and values of prefixes are held for as many as have room in one
    micro-batch."""
    return torch.split(vectors, max(1, budget // rows.n_prefix) if rows.n_prefix else len(vectors))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, as PyTorch tells it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
