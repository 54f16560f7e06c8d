"""An evaluator puts populations through a frozen model: they are cut into micro-batches, embedded and scored."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from backends.local.batching import Layout, MicroBatch, laid_out, micro_batches, reading_on
from backends.local.device import HeldSpace, exact_products, on_device
from backends.local.forward import Forward, KeysAndValues, Pass
from backends.local.graphs import Graphs
from backends.local.head import Head
from backends.local.plans import KEPT_TOKENS, Plan, kept, planned
from backends.local.rows import KEPT_BYTES, LaidRows, LocalRows, Planned, Shared, differing, lowest_difference
from backends.local.spread import weight_of
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Latents, Scores

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Evaluator:
    """A scorer of whole populations, in micro-batches of at most `token_budget` tokens.

    Safe to be called from several threads: what belongs to a call travels in its arguments. Models that keep
    something of a call in their modules are called by one thread at a time.
    """

    embedding_scale = 1.0
    """What word embeddings are multiplied by before the model is given them; `words` are so already."""

    def __init__(self, forward: Forward, head: Head, words: Tensor, token_budget: int) -> None:
        self.forward, self.head, self.words, self.token_budget = forward, head, words, token_budget
        self._one_length = forward.packed is None or forward.structure.depends_on_length
        self._turn = forward.structure.turn
        records = words.device.type == "cuda" and not (self._one_length or forward.structure.is_spread)
        self.graphs = Graphs() if records else None

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
        return self._fitting(rows, partial(self._scores, prompts, rows))

    def latent_scores(self, latents: Latents, space: HeldSpace, rows: LocalRows) -> Scores:
        """The scores (n, B, K) of the prompts that latents (n, d) stand for in a space on the device.

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        return self._fitting(rows, partial(self._latent_scores, latents, space, rows))

    def hidden_states(self, prompts: DeepPrompts, rows: LocalRows) -> Iterator[Tensor]:
        """Yield the hidden states (tokens, H) of all rows that enter layers 1, 2, ... under one prompt (1, L, T, H)."""
        vectors, below = self.tensor(prompts), None
        for layer in range(1, prompts.shape[1]):
            states = self._fitting(rows, partial(self._states, layer, vectors, rows, below))
            below = Shared(layer, prompts[0, :layer], states)
            yield states

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Copy an array to the device, floats as float32; see `on_device`."""
        return on_device(array, self.words.device)

    def _fitting(self, rows: Planned, compute: Callable[[int], T]) -> T:
        """What `compute` makes with the budget; where memory runs out, it is tried again with half of the budget."""
        while True:
            budget = self.token_budget
            try:
                with self._turn, exact_products(self.words.device):
                    return compute(budget)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if budget <= max(rows.lengths):
                    longest = f"one sequence of {max(rows.lengths)} tokens"
                    raise BackendError(f"{longest} does not fit into memory: {error}") from error
            # Only here, since the error holds the tensors of the call that failed.
            self._make_room(rows, budget)

    def _make_room(self, rows: Planned, budget: int) -> None:
        """Halve the budget with which memory ran out, and give back what is held for speed alone."""
        self.token_budget = min(self.token_budget, budget // 2)
        logger.warning("memory ran out: micro-batches have %d tokens from now on, not %d.", self.token_budget, budget)
        rows.plans.clear()
        if self.graphs:
            self.graphs.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _scores(self, prompts: DeepPrompts, rows: LocalRows, budget: int) -> Scores:
        return self._scores_of(self._vectors(prompts), prompts, rows, budget)

    @torch.inference_mode()
    def _latent_scores(self, latents: Latents, space: HeldSpace, rows: LocalRows, budget: int) -> Scores:
        return self._scores_of(space.prompts(self.tensor(latents))[:, None], None, rows, budget)

    def _scores_of(self, vectors: Tensor, deep: DeepPrompts | None, rows: LocalRows, budget: int) -> Scores:
        """The scores (n, B, K) of vectors (n, L, T, H) on the device, which are those of `deep` prompts if L > 1."""
        shared = self._shared(deep, vectors, rows, budget) if deep is not None and deep.shape[1] > 1 else None

        def compute(vectors: Tensor) -> Tensor:
            parts = blocks(vectors, rows, budget)
            return torch.cat([self._scores_of_block(part, rows, shared, budget) for part in parts])

        is_constant = vectors.shape[1] == 1 and len(vectors) * rows.n_tokens <= KEPT_TOKENS
        if self.graphs and is_constant:
            found = self.graphs.scores(rows, budget, vectors, compute)
        else:
            found = compute(vectors).cpu()
        return np.asarray(found.numpy(), dtype=np.float32)

    def _vectors(self, prompts: DeepPrompts) -> Tensor:
        """Copy prompts (n, L, T, H) to the device; a layer at which deep ones agree travels once."""
        if prompts.shape[1] == 1:
            return self.tensor(prompts)
        vectors = self.tensor(prompts[0]).repeat(len(prompts), 1, 1, 1)
        for layer in np.flatnonzero(differing(prompts)):
            vectors[:, layer] = self.tensor(prompts[:, layer])
        return vectors

    def _scores_of_block(self, vectors: Tensor, rows: LocalRows, shared: Shared | None, budget: int) -> Tensor:
        """The scores (n, B, K) of as many candidates' vectors (n, L, T, H) as are computed at a time."""
        scores = torch.empty(len(vectors), rows.n_examples, len(rows.label_ids), device=vectors.device)
        for plan, states in self._planned_passes(vectors, rows, shared, budget):
            scores[plan.candidates, plan.rows] = rows.head(states)
        return scores

    def _passes(
        self, vectors: Tensor, rows: LaidRows, shared: Shared | None, budget: int, every: Sequence[int] | None = None
    ) -> Iterator[tuple[MicroBatch, Layout, Tensor]]:
        """The micro-batches of a block of candidates (n, L, T, H), where their tokens lie, and the last hidden states
        (S, H) that are read. With `every` row's number of places, so many are read of it from its `read` on."""
        for plan, states in self._planned_passes(vectors, rows, shared, budget, every):
            yield plan.batch, plan.layout, states

    def _planned_passes(
        self, vectors: Tensor, rows: LaidRows, shared: Shared | None, budget: int, every: Sequence[int] | None = None
    ) -> Iterator[tuple[Plan, Tensor]]:
        """The plans of a block's micro-batches, each with the last hidden states that are read: see `_passes`."""
        left = self._left(vectors, rows, shared) if rows.n_prefix else None
        for plan in self._plans(rows, len(vectors), budget, rows.n_prefix, every):
            embeddings, call = self._embedded(plan, vectors[plan.batch.chosen], rows, shared)
            if left:
                chosen = plan.batch.chosen
                call.left = {layer: (k[chosen], v[chosen]) for layer, (k, v) in left.items()}
            yield plan, self.forward(embeddings, call)

    def _plans(
        self, rows: LaidRows, n: int, budget: int, skip: int, every: Sequence[int] | None = None
    ) -> Iterator[Plan]:
        """The plans of all rows, their first `skip` tokens left out, under n candidates."""

        def make() -> Iterator[Plan]:
            read_on = (lambda layout: layout) if every is None else partial(reading_on, counts=every)
            lengths = [length - skip for length in rows.lengths]
            for batch in micro_batches(lengths, n, budget, self._one_length):
                layout = laid_out(batch, rows.starts, rows.lengths, rows.reads, skip)
                yield self._plan(batch, layout, rows, skip, read_on)

        return kept(rows.plans, ("rows", n, budget, skip), make)

    def _plan(
        self, batch: MicroBatch, layout: Layout, rows: LaidRows, n_prefix: int, read_on: Callable[[Layout], Layout]
    ) -> Plan:
        return planned(batch, layout, rows.tokens, self.words.device, self.forward.kernel, n_prefix, read_on)

    def _left(self, vectors: Tensor, rows: LaidRows, shared: Shared | None) -> KeysAndValues:
        """The keys and values of the rows' common left part, once for each candidate."""

        def make() -> Iterator[Plan]:
            batch = MicroBatch(0, len(vectors), (0,))
            layout = laid_out(batch, rows.starts, [rows.n_prefix], [rows.n_prefix - 1])
            yield self._plan(batch, layout, rows, 0, lambda layout: layout)

        (plan,) = kept(rows.plans, ("prefix", len(vectors)), make)
        embeddings, call = self._embedded(plan, vectors, rows, shared)
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
        for plan in self._plans(rows, 1, budget, 0):
            embeddings, call = self._embedded(plan, vectors, rows, below)
            call.stop = layer
            self.forward(embeddings, call)
            assert call.reached is not None, "a forward pass goes through all layers"
            if states is None:
                states = call.reached.new_empty(rows.n_tokens, call.reached.shape[-1])
            states[plan.source.to(states.device)] = call.reached
        assert states is not None, "there are rows"
        return states

    def _embedded(self, plan: Plan, vectors: Tensor, rows: LaidRows, below: Shared | None) -> tuple[Tensor, Pass]:
        """The input embeddings (P, E) under prompts (n, L, T, H), and the pass that adds the deeper prompts and the
        difference from the anchor in their places, and goes on from the states `below`."""
        who, which = plan.who, plan.which
        call = Pass(plan.layout.groups, plan.positions, plan.read, plan.places, plan.lines)
        if below:
            call.first, call.states = below.layer, below.states[plan.source.to(below.states.device)]
        for layer in range(max(1, call.first), vectors.shape[1]):
            call.offsets[layer] = vectors[who, layer, which]
        embeddings = self.words[plan.ids]
        if not len(plan.places):
            return embeddings, call
        prompt = vectors[who, 0, which]
        if rows.anchor is None:
            embeddings[plan.places] = prompt.to(embeddings.dtype)
        else:
            embeddings[plan.places] = rows.anchor[0, which].to(embeddings.dtype)
            call.offsets[0] = self._after_layernorm(prompt - rows.anchor[0, which])
        return embeddings, call

    def _after_layernorm(self, offset: Tensor) -> Tensor:
        """What stands after the embedding LayerNorm, (M, E), as it is where the first layer begins, (M, H)."""
        projection = self.forward.structure.projection
        if projection is None:
            return offset
        weight = weight_of(projection, offset)
        assert weight is not None, "a projection has a weight"
        return functional.linear(offset, weight.to(offset.device, torch.float32))


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
