"""`LocalBackend`: whole populations through the forward pass of a `transformers` model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from backends.local.batching import MicroBatch, micro_batches
from backends.local.deep import KEPT_BYTES, Shared, clipped_std, lowest_difference
from backends.local.encoding import RowTokenizer, TokenRow, prompt_id
from backends.local.features import causal_log_likelihoods, hidden_states, masked_log_likelihoods
from backends.local.gradient import TrainableModel
from backends.local.layers import Layers
from backends.local.loading import Kind, fingerprint, load, resolve_device, resolve_precision
from backends.local.trunk import Trunk, embedding_layernorm, repeated
from bbt.backend import Features, ModelInfo, Row
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Prompts, Scores


@dataclass
class LocalRows:
    """One split, tokenised; `n_prefix` tokens at the left are the same in every row of a causal LM."""

    rows: list[TokenRow]
    label_ids: Tensor
    n_prompt_tokens: int
    n_prefix: int
    ids: list[Tensor] = field(default_factory=list)
    shared: Shared | None = None

    @property
    def n_examples(self) -> int:
        """B."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows, prompt tokens included."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut."""
        return sum(row.truncated for row in self.rows)


class LocalBackend:
    """A masked or causal LM on this machine, forward pass only.

    `model` is a bundled name, a folder or a name on the hub; `kind` overrides what its config says;
    `token_budget` bounds the tokens of one micro-batch, and with them the memory of an evaluation: it is halved
    for good when memory runs out.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        kind: Kind | None = None,
        device: str = "auto",
        precision: str = "auto",
        revision: str | None = None,
        token_budget: int = 16384,
    ) -> None:
        self._device = resolve_device(device)
        dtype = resolve_precision(precision, self._device)
        self._model, self._tokenizer, self._kind = load(model, kind, self._device, dtype, revision)
        self._dtype = dtype
        self._trunk = Trunk(self._model)
        self._layers = Layers(self._model)
        self._words = self._model.get_input_embeddings().weight
        self._row_tokenizer = RowTokenizer(self._tokenizer, self._max_length(), self._kind == "causal")
        self._name, self._revision = model, revision
        self._token_budget = token_budget
        self._anchor: Tensor | None = None

    @cached_property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return ModelInfo(
            name=self._name,
            kind=self._kind,
            architecture=type(self._model).__name__,
            hidden_size=int(self._words.shape[1]),
            n_layers=int(self._model.config.num_hidden_layers),
            vocab_size=int(self._words.shape[0]),
            max_length=self._max_length(),
            embedding_std=float(np.float32(self._words.double().std().item())),
            fingerprint=fingerprint(self._model),
            device=str(self._device),
            precision=str(self._dtype).removeprefix("torch."),
        )

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], reserved: int = 0) -> LocalRows:
        """Tokenise rows once, `reserved` positions shorter than the model; see `Backend.encode`."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        label_ids = torch.tensor(self._row_tokenizer.label_ids(label_words, rows[0]), device=self._device)
        tokens = [self._row_tokenizer.row(row, reserved) for row in rows]
        n_prompt_tokens = sum(segment.n_tokens for segment in rows[0])
        return LocalRows(
            tokens,
            label_ids,
            n_prompt_tokens,
            n_prefix=_common_prefix(tokens) if self._kind == "causal" else 0,
            ids=[torch.tensor(row.ids, device=self._device) for row in tokens],
        )

    def label_scores(self, prompts: Prompts, encoded: LocalRows) -> Scores:
        """(n, T, H) -> (n, B, K) logits of the label words, in micro-batches of at most `token_budget` tokens.

        Raises:
            BackendError: prompts of another shape, or one sequence alone does not fit into memory.
        """
        expected = (encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        return self._scores(prompts[:, None], encoded)

    def deep_label_scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        """(n, L, T, H) -> (n, B, K); see `DeepBackend.deep_label_scores`.

        The shared hidden states are kept beside the rows if they have at most `KEPT_BYTES`.
        """
        self._check_deep(prompts, encoded)
        return self._scores(prompts, encoded)

    def hidden_stds(self, prompts: DeepPrompts, encoded: LocalRows) -> NDArray[np.float64]:
        """(1, L, T, H) -> (L,); see `DeepBackend.hidden_stds`."""
        self._check_deep(prompts, encoded)
        stds, states = [clipped_std(self._words)], None
        for layer in range(1, self.info.n_layers):
            states = self._advance(states, layer - 1, layer, self._tensor(prompts), encoded)
            stds.append(clipped_std(torch.cat(states)))
        return np.array(stds)

    def _check_deep(self, prompts: DeepPrompts, encoded: LocalRows) -> None:
        expected = (self.info.n_layers, encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 4 or prompts.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise BackendError(f"deep prompts have shape {prompts.shape}, expected (n, {shape}).")

    def features(self, encoded: LocalRows) -> list[Features]:
        """The rows' last hidden states; see `FeatureBackend.features`."""
        states = hidden_states(self._model, encoded.ids, self._token_budget)
        return [Features(s.numpy(), row.read) for s, row in zip(states, encoded.rows, strict=True)]

    def token_log_likelihoods(self, encoded: LocalRows) -> list[NDArray[np.float32]]:
        """How likely each row's tokens are; see `LikelihoodBackend.token_log_likelihoods`."""
        if self._kind == "causal":
            return [causal_log_likelihoods(self._model, ids).numpy() for ids in encoded.ids]
        mask = self._tokenizer.mask_token_id
        places = [self._row_tokenizer.ordinary_places(row) for row in encoded.rows]
        return [
            masked_log_likelihoods(self._model, ids, at, mask).numpy()
            for ids, at in zip(encoded.ids, places, strict=True)
        ]

    def embed_text(self, text: str) -> Prompts:
        """Word embeddings of a text: (1, T, H)."""
        return self.embed_ids(self._row_tokenizer.text_ids(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """Word embeddings of token ids: (1, T, H)."""
        rows = self._words[torch.tensor(list(token_ids), dtype=torch.long, device=self._device)]
        return np.asarray(rows.float().cpu().numpy()[None])

    def ordinary_ids(self) -> list[int]:
        """Ids of all tokens that are not special."""
        special = set(self._tokenizer.all_special_ids)
        return [i for i in range(len(self._tokenizer)) if i not in special]

    def anchor(self, prompt: Prompts | None) -> None:
        """Add differences from this prompt (1, T, H) after the embedding LayerNorm; see `Backend.anchor`."""
        if prompt is None:
            self._anchor = None
            return
        embedding_layernorm(self._model)
        if prompt.ndim != 3 or prompt.shape[::2] != (1, self._words.shape[1]):
            raise BackendError(f"the anchor has shape {prompt.shape}, expected (1, T, {self._words.shape[1]}).")
        self._anchor = self._tensor(prompt)

    def trainable(self) -> TrainableModel:
        """The model once more, with fp32 weights and gradients; see `GradientBackend.trainable`."""
        model, _, _ = load(self._name, self._kind, self._device, torch.float32, self._revision)
        return TrainableModel(model, self._row_tokenizer, self.encode, self._dtype, self._token_budget)

    def _tensor(self, prompts: Prompts) -> Tensor:
        """A copy on the device: PyTorch warns of arrays that are read-only."""
        return torch.from_numpy(np.array(prompts, dtype=np.float32)).to(self._device)

    def _scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        """(n, L, T, H), L = 1 for prompts of the input alone, -> (n, B, K)."""
        if self._anchor is not None and 0 < encoded.n_prompt_tokens != self._anchor.shape[1]:
            raise BackendError(f"prompts have {encoded.n_prompt_tokens} tokens, the anchor {self._anchor.shape[1]}.")
        shape = (len(prompts), encoded.n_examples, len(encoded.label_ids))
        if not len(prompts):
            return np.empty(shape, dtype=np.float32)
        vectors = self._tensor(prompts)
        lengths = [len(row.ids) - encoded.n_prefix for row in encoded.rows]
        while True:
            try:
                scores = torch.empty(shape, device=self._device)
                shared = self._shared(prompts, vectors, encoded) if prompts.shape[1] > 1 else None
                with self._trunk.scoring(encoded.label_ids):
                    prefix = self._prefix(vectors, encoded, shared)
                    for batch in micro_batches(lengths, len(prompts), self._token_budget):
                        scores[batch.start : batch.stop, list(batch.rows)] = self._score(
                            batch, vectors, encoded, prefix, shared
                        )
                return np.asarray(scores.cpu().numpy(), dtype=np.float32)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._halve_budget(error, max(lengths))

    def _score(
        self,
        batch: MicroBatch,
        vectors: Tensor,
        encoded: LocalRows,
        prefix: list[tuple[Tensor, Tensor]] | None,
        shared: Shared | None,
    ) -> Tensor:
        """(candidates, rows, K) logits of one micro-batch."""
        n, b, skip = batch.stop - batch.start, len(batch.rows), encoded.n_prefix
        ids = _padded([encoded.ids[row][skip:] for row in batch.rows], batch.length)
        hidden = _padded([shared.states[row][skip:] for row in batch.rows], batch.length) if shared else None
        sizes = torch.tensor([len(encoded.rows[r].ids) - skip for r in batch.rows], device=self._device)
        read = torch.tensor([encoded.rows[r].read - skip for r in batch.rows], device=self._device)
        past = repeated(prefix, slice(batch.start, batch.stop), b) if prefix else None
        with self._embedded(ids, vectors[batch.start : batch.stop], shared.layer if shared else 0, hidden) as inputs:
            logits = self._trunk.logits(inputs, sizes.repeat(n), read.repeat(n), past, skip)
        return logits.float().view(n, b, -1)

    @contextmanager
    def _embedded(self, ids: Tensor, vectors: Tensor, start: int = 0, hidden: Tensor | None = None) -> Iterator[Tensor]:
        """Input embeddings (n * b, N, H) of the ids (b, N) under each prompt (n, L, T, H). Inside, the model adds
        the deeper prompts, and the difference from the anchor; its layers from `start` on go on from `hidden`."""
        with record_function("bbt.embedding"):
            rows, places = (ids < 0).nonzero(as_tuple=True)
            which = prompt_id(ids[rows, places])
            inputs = self._words[ids.clamp(min=0)].expand(len(vectors), -1, -1, -1).clone()
            anchor = self._anchor if len(which) else None
            inputs[:, rows, places] = (vectors[:, 0] if anchor is None else anchor)[:, which].to(self._dtype)

        def enter(layer: int, states: Tensor) -> Tensor:
            if hidden is not None and layer == start:
                states = hidden.repeat(len(vectors), 1, 1)
            if layer > 0:
                states.view(inputs.shape)[:, rows, places] += vectors[:, layer, which].to(self._dtype)
            return states

        with ExitStack() as stack:
            if anchor is not None:
                offsets = torch.zeros_like(inputs)
                offsets[:, rows, places] = (vectors[:, 0] - anchor)[:, which].to(self._dtype)
                stack.enter_context(self._trunk.adding_after_layernorm(offsets.flatten(0, 1)))
            if vectors.shape[1] > 1:
                stack.enter_context(self._layers.entered(enter, start))
            yield inputs.flatten(0, 1)

    def _prefix(self, vectors: Tensor, encoded: LocalRows, shared: Shared | None) -> list[tuple[Tensor, Tensor]] | None:
        """Keys and values of the rows' common left part, once for each candidate."""
        if not encoded.n_prefix:
            return None
        start, ids = 0, encoded.ids[0][None, : encoded.n_prefix]
        hidden = None
        if shared:
            start, hidden = shared.layer, shared.states[0][None, : encoded.n_prefix]
        parts = []
        for part in torch.split(vectors, max(1, self._token_budget // encoded.n_prefix)):
            with self._embedded(ids, part, start, hidden) as inputs:
                parts.append(self._trunk.keys_and_values(inputs, start))
        return [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in zip(*parts, strict=True)
        ]

    def _shared(self, prompts: DeepPrompts, vectors: Tensor, encoded: LocalRows) -> Shared | None:
        """What enters the lowest layer at which the candidates differ; None: nothing is shared, or it is too large."""
        kept = encoded.shared if encoded.shared and encoded.shared.holds_for(prompts, self._anchor) else None
        layer = lowest_difference(prompts) if len(prompts) > 1 else kept.layer if kept else 0
        if kept and kept.layer == layer:
            return kept
        if not layer or encoded.n_tokens * self._words.shape[1] * self._dtype.itemsize > KEPT_BYTES:
            return None
        if kept and kept.layer < layer:
            states = self._advance(kept.states, kept.layer, layer, vectors[:1], encoded)
        else:
            states = self._advance(None, 0, layer, vectors[:1], encoded)
        encoded.shared = Shared(layer, prompts[0, :layer].copy(), self._anchor, states)
        return encoded.shared

    def _advance(
        self, states: list[Tensor] | None, start: int, stop: int, vectors: Tensor, encoded: LocalRows
    ) -> list[Tensor]:
        """Each row's hidden states (tokens, H) that enter layer `stop`, from those that enter layer `start`."""
        found: list[Tensor] = [torch.empty(0)] * encoded.n_examples
        sizes = [len(row.ids) for row in encoded.rows]
        for batch in micro_batches(sizes, 1, self._token_budget):
            ids = _padded([encoded.ids[row] for row in batch.rows], batch.length)
            hidden = _padded([states[row] for row in batch.rows], batch.length) if states else None
            lengths = torch.tensor([sizes[row] for row in batch.rows], device=self._device)
            with self._embedded(ids, vectors, start, hidden) as inputs, self._layers.until(stop) as reached:
                self._trunk.logits(inputs, lengths, lengths - 1)
            for row, state in zip(batch.rows, reached[0], strict=True):
                found[row] = state[: sizes[row]].clone()
        return found

    def _max_length(self) -> int:
        """Positions that the model has and its tokenizer admits; RoBERTa's begin after the padding index."""
        config = self._model.config
        limit = int(getattr(config, "max_position_embeddings", None) or self._tokenizer.model_max_length)
        embeddings = getattr(self._model.base_model, "embeddings", None)
        offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        return min(limit - (0 if offset is None else offset + 1), int(self._tokenizer.model_max_length))

    def _halve_budget(self, error: RuntimeError, longest: int) -> None:
        """Out of memory: half the micro-batch from now on. Anything else is raised again."""
        if not _is_out_of_memory(error):
            raise error
        if self._token_budget <= longest:
            raise BackendError(f"one sequence of {longest} tokens does not fit into memory: {error}") from error
        self._token_budget //= 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """Rows (tokens, ...) one under another, filled up with zeros."""
    padded = rows[0].new_zeros(len(rows), length, *rows[0].shape[1:])
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _common_prefix(rows: Sequence[TokenRow]) -> int:
    """Tokens at the left that all rows share, leaving every row at least its read position to compute."""
    shortest = min(row.read for row in rows)
    first = rows[0].ids
    differ: Callable[[int], bool] = lambda i: any(row.ids[i] != first[i] for row in rows)  # noqa: E731
    return next((i for i in range(shortest) if differ(i)), shortest)
