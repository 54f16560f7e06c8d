"""Populations through a frozen model: cut into micro-batches, embedded, scored."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backends.local.attention import KeysAndValues, Packed
from backends.local.batching import MicroBatch, micro_batches
from backends.local.deep import KEPT_BYTES, Shared, lowest_difference
from backends.local.encoding import prompt_id
from backends.local.layers import Layers
from backends.local.packed import PackedTrunk
from backends.local.packing import Pack, packed
from backends.local.rows import LocalRows
from backends.local.trunk import Trunk, word_embeddings
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Scores

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Evaluator:
    """Scores whole populations; micro-batches have at most `token_budget` tokens.

    With an `anchor` (1, T, H), prompts' differences from it are added after the embedding LayerNorm.
    """

    def __init__(self, model: Any, token_budget: int) -> None:
        self._model = model
        self._trunk = Trunk(model)
        self._layers = Layers(model)
        self._words = word_embeddings(model)
        self.token_budget = token_budget
        self.anchor: Tensor | None = None
        self.packed = self._packed()

    def label_scores(self, prompts: DeepPrompts, rows: LocalRows) -> Scores:
        """(n, L, T, H), L = 1 for prompts of the input alone, -> (n, B, K).

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        return self._fitting(rows, partial(self._score, prompts, rows))

    def hidden_states(self, prompts: DeepPrompts, rows: LocalRows) -> Iterator[Tensor]:
        """(tokens, H) hidden states of all rows that enter layers 1, 2, ... under one prompt (1, L, T, H)."""
        vectors, below = self.tensor(prompts), None
        for layer in range(1, prompts.shape[1]):
            states = self._fitting(rows, partial(self._states, layer, vectors, rows, below))
            below = Shared(layer, prompts[0, :layer], self.anchor, states)
            yield states

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device: PyTorch warns of arrays that are read-only."""
        kind = np.float32 if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype=kind)).to(self._words.device)

    def _packed(self) -> PackedTrunk | None:
        """The model for packed rows, if it scores two short rows packed as it scores them apart."""
        lengths, labels = [5, 3], torch.arange(min(32, len(self._words)), device=self._words.device)
        embeddings = self._words[self.tensor(np.arange(sum(lengths)) % len(self._words))]
        together = packed(MicroBatch(0, 1, (0, 1)), np.array([0, 5]), lengths, [4, 2])
        alone = [packed(MicroBatch(0, 1, (0,)), np.array([0]), [n], [n - 1]) for n in lengths]
        try:
            trunk = PackedTrunk(self._model, self._layers)
            with self._trunk.scoring(labels):
                parts = torch.split(embeddings, lengths)
                expected = torch.cat([self._plain_logits(*part) for part in zip(parts, alone, strict=True)])
                with trunk.active():
                    found = self._packed_logits(trunk, embeddings, together, None)
        except Exception as error:  # whatever an unknown architecture makes of arguments that it does not know
            logger.info("%s takes no packed rows: %s", type(self._model).__name__, error)
            return None
        tolerance = 1e-3 if self._words.dtype == torch.float32 else 0.1
        same = found.shape == expected.shape and (found - expected).abs().max() <= tolerance * expected.std()
        return trunk if same else None

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
                if self._words.is_cuda:
                    torch.cuda.empty_cache()

    def _score(self, prompts: DeepPrompts, rows: LocalRows) -> Scores:
        vectors = self.tensor(prompts)
        shared = self._shared(prompts, vectors, rows) if prompts.shape[1] > 1 else None
        # Keys and values of a prefix are held for as many candidates as one micro-batch has prefixes.
        block = max(1, self.token_budget // rows.n_prefix) if rows.n_prefix else len(prompts)
        with self._running(rows.label_ids):
            scores = [self._score_block(part, rows, shared) for part in torch.split(vectors, block)]
        return np.asarray(torch.cat(scores).cpu().numpy(), dtype=np.float32)

    def _score_block(self, vectors: Tensor, rows: LocalRows, shared: Shared | None) -> Tensor:
        """(n, L, T, H) -> (n, B, K)."""
        scores = torch.empty(len(vectors), rows.n_examples, len(rows.label_ids), device=vectors.device)
        prefix = self._prefix(vectors, rows, shared) if rows.n_prefix else None
        for batch in self._batches([length - rows.n_prefix for length in rows.lengths], len(vectors)):
            pack = packed(batch, rows.starts, rows.lengths, rows.reads, rows.n_prefix)
            left = prefix and {m: (k[batch.chosen], v[batch.chosen]) for m, (k, v) in prefix.items()}
            with self._embedded(pack, vectors[batch.chosen], rows, shared) as embeddings:
                candidates, which = map(self.tensor, pack.sequences)
                scores[candidates + batch.start, which] = self._logits(embeddings, pack, left)
        return scores

    def _prefix(self, vectors: Tensor, rows: LocalRows, shared: Shared | None) -> dict[nn.Module, KeysAndValues]:
        """Keys and values of the rows' common left part, once for each candidate."""
        pack = packed(MicroBatch(0, len(vectors), (0,)), rows.starts, [rows.n_prefix], [rows.n_prefix - 1])
        assert self.packed
        with self._embedded(pack, vectors, rows, shared) as embeddings:
            return self.packed.keys_and_values(embeddings, self.tensor(pack.positions), pack.groups)

    def _shared(self, prompts: DeepPrompts, vectors: Tensor, rows: LocalRows) -> Shared | None:
        """What enters the lowest layer at which the candidates differ; None: nothing is shared, or it is too large."""
        kept = rows.shared if rows.shared and rows.shared.holds_for(prompts, self.anchor) else None
        layer = lowest_difference(prompts) if len(prompts) > 1 else kept.layer if kept else 0
        if kept and kept.layer == layer:
            return kept
        if not layer or rows.n_tokens * self._words.shape[1] * self._words.itemsize > KEPT_BYTES:
            return None
        states = self._states(layer, vectors[:1], rows, kept if kept and kept.layer < layer else None)
        rows.shared = Shared(layer, prompts[0, :layer].copy(), self.anchor, states)
        return rows.shared

    def _states(self, layer: int, vectors: Tensor, rows: LocalRows, below: Shared | None) -> Tensor:
        """(tokens, H) hidden states of all rows that enter a layer, from those that enter a lower one if given."""
        states = self._words.new_empty(rows.n_tokens, self._words.shape[1])
        with self._running(rows.label_ids):
            for batch in self._batches(rows.lengths, 1):
                pack = packed(batch, rows.starts, rows.lengths, rows.reads)
                with self._embedded(pack, vectors, rows, below) as embeddings, self._layers.until(layer) as reached:
                    self._logits(embeddings, pack, None)
                states[self.tensor(pack.source)] = reached[0].flatten(0, 1)
        return states

    def _batches(self, lengths: list[int], n_candidates: int) -> list[MicroBatch]:
        return micro_batches(lengths, n_candidates, self.token_budget, one_length=self.packed is None)

    @contextmanager
    def _running(self, label_ids: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._trunk.scoring(label_ids))
            if self.packed:
                stack.enter_context(self.packed.active())
            yield

    @contextmanager
    def _embedded(self, pack: Pack, vectors: Tensor, rows: LocalRows, below: Shared | None) -> Iterator[Tensor]:
        """Input embeddings (P, H) under prompts (n, L, T, H). Inside, the model adds the deeper prompts and the
        difference from the anchor in their places, and goes on from the states `below`."""
        ids = rows.tokens[pack.source]
        soft = np.flatnonzero(ids < 0)
        at, who, which = map(self.tensor, (soft, pack.candidates[soft], prompt_id(ids[soft])))
        anchor = self.anchor if len(soft) else None

        def added(states: Tensor, prompt: Tensor) -> Tensor:
            states.view(-1, states.shape[-1]).index_add_(0, at, prompt.to(states.dtype))
            return states

        def enter(layer: int, states: Tensor) -> Tensor:
            if below and layer == below.layer:
                states = below.states[self.tensor(pack.source)].view(states.shape)
            return added(states, vectors[who, layer, which]) if layer else states

        embeddings = self._words[self.tensor(np.maximum(ids, 0))]
        embeddings[at] = (vectors[who, 0, which] if anchor is None else anchor[0, which]).to(embeddings.dtype)
        with ExitStack() as stack:
            if anchor is not None:
                offset = vectors[who, 0, which] - anchor[0, which]
                stack.enter_context(self._trunk.after_layernorm(lambda states: added(states, offset)))
            if vectors.shape[1] > 1:
                stack.enter_context(self._layers.entered(enter, below.layer if below else 0))
            yield embeddings

    def _logits(self, embeddings: Tensor, pack: Pack, prefix: dict[nn.Module, KeysAndValues] | None) -> Tensor:
        """(P, H) -> (S, K)."""
        if self.packed:
            return self._packed_logits(self.packed, embeddings, pack, prefix)
        return self._plain_logits(embeddings, pack)

    def _packed_logits(
        self, trunk: PackedTrunk, embeddings: Tensor, pack: Pack, prefix: dict[nn.Module, KeysAndValues] | None
    ) -> Tensor:
        positions, read = self.tensor(pack.positions), self.tensor(pack.read)
        return trunk.logits(embeddings, positions, Packed(pack.groups, read, prefix))

    def _plain_logits(self, embeddings: Tensor, pack: Pack) -> Tensor:
        """Sequences of one length, as every model takes them."""
        (group,) = pack.groups
        inputs = embeddings.view(-1, group.length, embeddings.shape[1])
        lengths = torch.full(inputs.shape[:1], group.length, device=inputs.device)
        return self._trunk.logits(inputs, lengths, self.tensor(pack.read) % group.length)


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
