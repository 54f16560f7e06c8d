"""A `LocalBackend` puts whole populations through the forward pass of a `transformers` model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backends.local.device import HeldSpace, has_room_for
from backends.local.encoder_decoder_gradient import TrainableEncoderDecoder
from backends.local.encoding import ordinary_ids
from backends.local.features import causal_log_likelihoods, hidden_states, masked_log_likelihoods
from backends.local.frozen import Source
from backends.local.generation import generated
from backends.local.gradient import TrainableModel
from backends.local.loading import load, resolve_device, resolve_precision
from backends.local.plain import plain_text
from backends.local.precision import settled
from backends.local.rows import LocalContexts, LocalPairs, LocalRows, clipped_std
from backends.local.source import Kind
from backends.local.spread import DeviceMap, check_device_map, devices_of
from backends.local.targets import TargetEvaluator
from bbt.backend import Decoding, Features, ModelInfo, PlainText, Row
from bbt.errors import BackendError
from bbt.spaces.soft import PromptSpace
from bbt.types import AnyPrompts, DeepPrompts, Latents, Prompts, RowScores, Scores, TokenIds


class LocalBackend:
    """A masked or causal LM or an encoder-decoder on this machine, forward pass only.

    It may be called from several threads at once.

    Args:
        model: a bundled name, a folder or a name on the hub.
        kind: masked, causal or encoder-decoder (none: what the model's config says).
        device: auto, cpu, cuda or mps; `auto` takes cuda, then mps, then cpu.
        precision: auto, fp32, bf16 or fp16. `auto` takes bf16 where the chip is fast with it, unless on a trial it does
            not rank candidates as fp32 does: then a warning says so, and fp32 is taken. That is settled here, once; it
            takes memory for the model in fp32, and about as long as four queries of 32 rows. Name a precision to save
            it.
        revision: the revision on the hub (none: the latest).
        token_budget: the most tokens of one micro-batch, which bounds the memory of an evaluation (none: as many as
            stay in a CPU's caches, or keep a GPU busy and fit into its free memory: `default_budget`). It is halved for
            good when memory runs out.
        device_map: how a model that is too large for one GPU is spread over several, as in transformers: auto,
            balanced, balanced_low_0, sequential, or a device for each module. What has no room there is kept in the
            host's memory or on disk, and fetched for each micro-batch. It is given in place of `device`, and goes
            without CUDA graphs, without gradients, and without the trial of `precision: auto`.
        at_once: the most candidates that are scored together (none: all of a call). In float32 a candidate's last bits
            may depend on those beside it; with this they depend on the share that it falls in, and are those of
            `backend: ray` with the same `at_once`.

    Raises:
        BackendError: the model cannot be loaded, or its scores are not those of a plain forward pass.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        kind: Kind | None = None,
        device: str = "auto",
        precision: str = "auto",
        revision: str | None = None,
        token_budget: int | None = None,
        at_once: int | None = None,
        device_map: DeviceMap | None = None,
    ) -> None:
        if device_map is not None:
            check_device_map(device_map, device)
        where = resolve_device(device)
        source = Source(model, kind, where, revision, token_budget, device_map)
        found = settled(source, resolve_precision(precision, where), on_trial=precision == "auto")
        self._frozen, self._embedding_std = found.model, found.embedding_std
        self._evaluator, self._words = self._frozen.evaluator, self._frozen.words
        self._at_once = at_once
        self._space: HeldSpace | None = None

    @property
    def token_budget(self) -> int:
        """The most tokens of one micro-batch."""
        return self._evaluator.token_budget

    def peak_memory_mb(self) -> float | None:
        """The most MB of the GPU, or of all that hold the model, that this process has held at a time; None on a
        CPU."""
        gpus = [device for device in devices_of(self.model) if device.type == "cuda"]
        return sum(map(torch.cuda.max_memory_allocated, gpus)) / 1e6 if gpus else None

    @property
    def model(self) -> Any:
        """The model as transformers loaded it. A plain forward pass goes through it, and no evaluation does."""
        return self._frozen.model

    @property
    def trunk(self) -> nn.Module:
        """The module that an evaluation calls once for each micro-batch before the rows' head, for whoever measures
        it."""
        return self._evaluator.trunk

    @property
    def target_evaluator(self) -> TargetEvaluator:
        """What scores targets of several tokens, for whoever measures it."""
        return self._frozen.target_evaluator

    @contextmanager
    def step_by_step(self) -> Iterator[None]:
        """A context in which no evaluation goes through a CUDA graph, for whoever watches the model's modules."""
        graphs = self._evaluator.graphs
        was = graphs is not None and graphs.enabled
        if graphs:
            graphs.enabled = False
        try:
            yield
        finally:
            if graphs:
                graphs.enabled = was

    @cached_property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return ModelInfo(
            name=self._frozen.source.name,
            kind=self._frozen.kind,
            architecture=type(self.model).__name__,
            hidden_size=int(self._words.shape[1]),
            n_layers=len(self._evaluator.forward.structure.layers) or int(self.model.config.num_hidden_layers),
            vocab_size=int(self._words.shape[0]),
            max_length=self._frozen.max_length,
            embedding_std=float(np.float32(self._embedding_std)),
            fingerprint=self._frozen.fingerprint,
            device=str(self._frozen.device),
            precision=str(self._words.dtype).removeprefix("torch."),
        )

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> LocalRows:
        """Tokenise rows once; see `Backend.encode`."""
        return self._frozen.encode(rows, label_words, anchor)

    def label_scores(self, prompts: Prompts, encoded: LocalRows) -> Scores:
        """The logits (n, B, K) of the label words under prompts (n, T, H), in micro-batches of at most `token_budget`
        tokens.

        Raises:
            BackendError: prompts of another shape, or one sequence alone does not fit into memory.
        """
        self._check(prompts, encoded)
        return self._scores(prompts[:, None], encoded)

    def latent_scores(self, latents: Latents, space: PromptSpace, encoded: LocalRows) -> Scores:
        """The scores (n, B, K) of latents (n, d) in a space; see `LatentBackend`.

        On a GPU that has room for it the space of the last call stays there, and z travels; otherwise the host makes
        the prompts.
        """
        self._check(space.p0, encoded)
        held, device = self._space, self._frozen.device
        if held is None or held.space is not space:
            held = self._space = HeldSpace(space, device) if has_room_for(space, device) else None
        if held is None or not len(latents):
            return self.label_scores(space.prompts(latents), encoded)
        return self._evaluator.latent_scores(latents, held, encoded)

    def _check(self, prompts: Prompts, encoded: LocalRows | LocalPairs | LocalContexts) -> None:
        expected = (encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")

    def deep_label_scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        """The logits (n, B, K) under deep prompts (n, L, T, H); see `DeepBackend.deep_label_scores`.

        The shared hidden states are kept beside the rows if they have at most `KEPT_BYTES`.
        """
        self._check_deep(prompts, encoded)
        return self._scores(prompts, encoded)

    def hidden_stds(self, prompts: DeepPrompts, encoded: LocalRows) -> NDArray[np.float64]:
        """The standard deviations (L,) of the hidden states under a deep prompt (1, L, T, H); see
        `DeepBackend.hidden_stds`."""
        self._check_deep(prompts, encoded)
        states = self._evaluator.hidden_states(prompts, encoded)
        return np.array([self.info.embedding_std, *map(clipped_std, states)])

    def _check_deep(self, prompts: DeepPrompts, encoded: LocalRows) -> None:
        parts = self._evaluator.forward.structure
        if self._frozen.kind == "encoder-decoder":
            raise BackendError("deep prompts are for masked and causal LMs; use another method than bbtv2.")
        parts.require_layers()
        if parts.hidden_size != self._words.shape[1]:
            raise BackendError(
                f"{self.info.architecture} has word embeddings of {self._words.shape[1]} numbers and hidden states of "
                f"{parts.hidden_size}: deep prompts need one size; use another method than bbtv2."
            )
        expected = (self.info.n_layers, encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 4 or prompts.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise BackendError(f"deep prompts have shape {prompts.shape}, expected (n, {shape}).")

    def features(self, encoded: LocalRows) -> list[Features]:
        """The rows' last hidden states, of an encoder-decoder its encoder's; see `FeatureBackend.features`."""
        encodes = self._frozen.kind == "encoder-decoder"
        trunk = self.model.get_encoder() if encodes else self.model.base_model
        with self._turn:
            states = hidden_states(trunk, encoded.ids, self.token_budget)
        return [Features(s.numpy(), row.read) for s, row in zip(states, encoded.rows, strict=True)]

    def token_log_likelihoods(self, encoded: LocalRows) -> list[NDArray[np.float32]]:
        """The log-likelihoods of each row's tokens; see `LikelihoodBackend.token_log_likelihoods`.

        Raises:
            BackendError: an encoder-decoder, which reads its rows and does not foretell them.
        """
        if self._frozen.kind == "encoder-decoder":
            raise BackendError(
                f"{self.info.architecture} gives no likelihoods of what its encoder reads: take another kind of model."
            )
        if self._frozen.kind == "causal":
            with self._turn:
                return [causal_log_likelihoods(self.model, ids).numpy() for ids in encoded.ids]
        mask = self._frozen.tokenizer.mask_token_id
        places = [self._frozen.row_tokenizer.ordinary_places(row) for row in encoded.rows]
        with self._turn:
            return [
                masked_log_likelihoods(self.model, ids, at, mask).numpy()
                for ids, at in zip(encoded.ids, places, strict=True)
            ]

    def encode_pairs(self, rows: Sequence[Row]) -> LocalPairs:
        """Tokenise rows that end in targets; see `TargetBackend.encode_pairs`."""
        return self._frozen.encode_pairs(rows)

    def target_log_likelihoods(self, prompts: Prompts, encoded: LocalPairs) -> RowScores:
        """(n, T, H) -> (n, B); see `TargetBackend.target_log_likelihoods`.

        What rows have in common at the left is computed once a candidate: a context with all its targets, or the
        prompt of all rows. Micro-batches have at most `token_budget` tokens.

        Raises:
            BackendError: prompts of another shape, or one sequence alone does not fit into memory.
        """
        self._check(prompts, encoded)
        score = self._frozen.target_evaluator.log_likelihoods
        return np.concatenate([score(share, encoded) for share in self._shares(prompts)])

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> LocalContexts:
        """Tokenise what is written on from; see `GenerationBackend.encode_contexts`."""
        return self._frozen.encode_contexts(rows, max_new_tokens)

    def generate(self, prompt: Prompts, encoded: LocalContexts, decoding: Decoding) -> list[str]:
        """What the model writes; see `GenerationBackend.generate`.

        Raises:
            BackendError: not one prompt of the rows' length, or more new tokens than the rows have room for.
        """
        self._check(prompt, encoded)
        if len(prompt) != 1 or decoding.max_new_tokens > encoded.max_new_tokens:
            raise BackendError(
                f"text is generated under one prompt, {encoded.max_new_tokens} tokens at most after these rows; asked "
                f"for {len(prompt)} prompts and {decoding.max_new_tokens} tokens."
            )
        vectors = self._evaluator.tensor(prompt)[0]
        parts = (self.model, self._frozen.tokenizer, self._words, encoded.rows, vectors)
        with self._turn:
            return generated(*parts, decoding, self.token_budget)

    def hard_scores(self, token_ids: TokenIds, encoded: LocalRows) -> Scores:
        """The logits (n, B, K) under prompts of tokens (n, T): those of the tokens' word embeddings."""
        words = self.embed_ids(token_ids.ravel().tolist())
        return self.label_scores(words.reshape(*token_ids.shape, words.shape[-1]), encoded)

    def prompt_ids(self, text: str) -> list[int]:
        """The token ids of a text as it stands after other words."""
        return self._frozen.row_tokenizer.text_ids(text)

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a hard prompt's tokens."""
        return self._frozen.row_tokenizer.text(token_ids)

    def plain_text(
        self, render: Callable[[str, str], Row], label_words: Sequence[str], targets: Sequence[str] = ()
    ) -> PlainText:
        """Describe what the bare tokenizer needs for the same rows; see `PlainBackend.plain_text`."""
        if self._evaluator.embedding_scale != 1:
            raise BackendError(
                f"{self.info.architecture} scales the embeddings of token ids, and not those that PEFT and the like "
                "give it: no export would be exact. Use the prompt with bbt predict or bbt serve."
            )
        return plain_text(self._frozen.tokenizer, self._frozen.row_tokenizer, render, label_words, targets)

    def embed_text(self, text: str) -> Prompts:
        """The word embeddings (1, T, H) of a text."""
        return self.embed_ids(self._frozen.row_tokenizer.text_ids(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids."""
        rows = self._words[torch.tensor(list(token_ids), dtype=torch.long, device=self._words.device)]
        return np.asarray(rows.float().cpu().numpy()[None])

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens that are not special."""
        return ordinary_ids(self._frozen.tokenizer, len(self._words))

    def trainable(self) -> TrainableModel:
        """Load the model once more, with fp32 weights and gradients; see `GradientBackend.trainable`.

        Raises:
            BackendError: the model is spread over several devices.
        """
        source = self._frozen.source
        if source.device_map is not None:
            raise BackendError("gradients need the model on one device: leave device_map out, or use another method.")
        model = load(source.name, source.kind, source.device, torch.float32, source.revision).model
        made = TrainableEncoderDecoder if self._frozen.kind == "encoder-decoder" else TrainableModel
        return made(model, self._frozen)

    @property
    def _turn(self) -> AbstractContextManager[Any]:
        """What a call of the model itself waits for, where one thread at a time may make it."""
        return self._evaluator.forward.structure.turn

    def _scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        if not len(prompts):
            return np.empty((0, encoded.n_examples, len(encoded.label_ids)), dtype=np.float32)
        return np.concatenate([self._evaluator.label_scores(share, encoded) for share in self._shares(prompts)])

    def _shares(self, prompts: AnyPrompts) -> list[AnyPrompts]:
        """The candidates that are scored together, in their order; without any, one empty share."""
        step = self._at_once or max(1, len(prompts))
        return [prompts[start : start + step] for start in range(0, max(1, len(prompts)), step)]
