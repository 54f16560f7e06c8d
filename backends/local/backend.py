"""`LocalBackend`: whole populations through the forward pass of a `transformers` model."""

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from backends.local.deep import clipped_std
from backends.local.encoding import RowTokenizer, TokenRow, ordinary_ids
from backends.local.evaluation import Evaluator
from backends.local.features import causal_log_likelihoods, hidden_states, masked_log_likelihoods
from backends.local.gradient import TrainableModel
from backends.local.loading import Kind, load, resolve_device, resolve_precision
from backends.local.packed import first_position
from backends.local.precision import disagreement
from backends.local.rows import LocalRows
from backends.local.trunk import embedding_layernorm
from bbt.backend import Backend, Features, ModelInfo, Row, check_anchor
from bbt.errors import BackendError
from bbt.types import DeepPrompts, Prompts, Scores, TokenIds

TOKEN_BUDGETS = {"cpu": 4096, "cuda": 65536}


class LocalBackend:
    """A masked or causal LM on this machine, forward pass only.

    `model` is a bundled name, a folder or a name on the hub; `kind` overrides what its config says;
    `precision: auto` takes bf16 where the chip has matrix units for it, and goes back to fp32 with a warning where bf16
    does not rank candidates as fp32 does (`precision.disagreement`). That is seen before the first population is
    scored; it takes memory for the model in fp32, and the time of 40 queries of 32 short rows: name a precision to
    save it. `token_budget` bounds the tokens of one micro-batch, and with them the memory of an evaluation: by default
    as many as stay in a CPU's caches, or keep a GPU busy (`TOKEN_BUDGETS`); halved for good when memory runs out.
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
    ) -> None:
        self._device = resolve_device(device)
        dtype = resolve_precision(precision, self._device)
        self._dtype = dtype
        self._model, self._tokenizer, self._kind, self._fingerprint = load(model, kind, self._device, dtype, revision)
        self._evaluator = Evaluator(self._model, token_budget or TOKEN_BUDGETS.get(self._device.type, 16384))
        self._words = self._evaluator.forward.words
        self._row_tokenizer = RowTokenizer(self._tokenizer, self._max_length(), self._kind == "causal")
        self._name, self._revision = model, revision
        self._on_trial = precision == "auto" and dtype is not torch.float32

    @property
    def token_budget(self) -> int:
        """Tokens of one micro-batch, at most."""
        return self._evaluator.token_budget

    def peak_memory_mb(self) -> float | None:
        """The most MB of the GPU that this process has held at a time; None on a CPU."""
        on_gpu = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated(self._device) / 1e6 if on_gpu else None

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
            fingerprint=self._fingerprint,
            device=str(self._device),
            precision=str(self._words.dtype).removeprefix("torch."),
        )

    def encode(
        self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None, *, reserved: int = 0
    ) -> LocalRows:
        """Tokenise rows once, `reserved` positions shorter than the model; see `Backend.encode`."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        label_ids = torch.tensor(self._row_tokenizer.label_ids(label_words, rows[0]), device=self._device)
        tokens = [self._row_tokenizer.row(row, reserved) for row in rows]
        n_prompt_tokens = sum(segment.n_tokens for segment in rows[0])
        n_prefix = _common_prefix(tokens) if self._kind == "causal" and self._evaluator.shares_prefixes else 0
        if anchor is None or not n_prompt_tokens:
            return LocalRows(tokens, label_ids, n_prompt_tokens, n_prefix)
        check_anchor(anchor, n_prompt_tokens, self._words.shape[1])
        embedding_layernorm(self._model)
        return LocalRows(tokens, label_ids, n_prompt_tokens, n_prefix, self._evaluator.forward.tensor(anchor))

    def label_scores(self, prompts: Prompts, encoded: LocalRows) -> Scores:
        """(n, T, H) -> (n, B, K) logits of the label words, in micro-batches of at most `token_budget` tokens.

        Raises:
            BackendError: prompts of another shape, or one sequence alone does not fit into memory.
        """
        expected = (encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        self._settle_precision(len(prompts))
        return self._scores(prompts[:, None], encoded)

    def deep_label_scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        """(n, L, T, H) -> (n, B, K); see `DeepBackend.deep_label_scores`.

        The shared hidden states are kept beside the rows if they have at most `KEPT_BYTES`.
        """
        self._check_deep(prompts, encoded)
        self._settle_precision(len(prompts))
        return self._scores(prompts, encoded)

    def hidden_stds(self, prompts: DeepPrompts, encoded: LocalRows) -> NDArray[np.float64]:
        """(1, L, T, H) -> (L,); see `DeepBackend.hidden_stds`."""
        self._check_deep(prompts, encoded)
        states = self._evaluator.hidden_states(prompts, encoded)
        return np.array([self.info.embedding_std, *map(clipped_std, states)])

    def _settle_precision(self, n_candidates: int) -> None:
        """Before the first population is ranked: `auto` goes back to fp32 where half precision ranks otherwise."""
        if not self._on_trial or n_candidates < 2:
            return
        self._on_trial = False
        full = LocalBackend(
            self._name,
            kind=self._kind,
            device=str(self._device),
            precision="fp32",
            revision=self._revision,
            token_budget=self.token_budget,
        )
        reason = disagreement(cast(Backend, self), cast(Backend, full))
        if reason:
            print(f"warning: precision auto: fp32 instead of {self.info.precision}, {reason}.", file=sys.stderr)
            self.__dict__ = full.__dict__

    def _check_deep(self, prompts: DeepPrompts, encoded: LocalRows) -> None:
        expected = (self.info.n_layers, encoded.n_prompt_tokens, self._words.shape[1])
        if prompts.ndim != 4 or prompts.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise BackendError(f"deep prompts have shape {prompts.shape}, expected (n, {shape}).")

    def features(self, encoded: LocalRows) -> list[Features]:
        """The rows' last hidden states; see `FeatureBackend.features`."""
        states = hidden_states(self._model, encoded.ids, self.token_budget)
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

    def hard_scores(self, token_ids: TokenIds, encoded: LocalRows) -> Scores:
        """(n, T) -> (n, B, K): the scores of the tokens' word embeddings."""
        words = self.embed_ids(token_ids.ravel().tolist())
        return self.label_scores(words.reshape(*token_ids.shape, words.shape[-1]), encoded)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands after other words."""
        return self._row_tokenizer.text_ids(text)

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a hard prompt's tokens."""
        return self._row_tokenizer.text(token_ids)

    def embed_text(self, text: str) -> Prompts:
        """Word embeddings of a text: (1, T, H)."""
        return self.embed_ids(self._row_tokenizer.text_ids(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """Word embeddings of token ids: (1, T, H)."""
        rows = self._words[torch.tensor(list(token_ids), dtype=torch.long, device=self._device)]
        return np.asarray(rows.float().cpu().numpy()[None])

    def ordinary_ids(self) -> list[int]:
        """Ids of all tokens that are not special."""
        return ordinary_ids(self._tokenizer, len(self._words))

    def trainable(self) -> TrainableModel:
        """The model once more, with fp32 weights and gradients; see `GradientBackend.trainable`."""
        model = load(self._name, self._kind, self._device, torch.float32, self._revision).model
        return TrainableModel(model, self._row_tokenizer, self.encode, self._dtype, self.token_budget)

    def _scores(self, prompts: DeepPrompts, encoded: LocalRows) -> Scores:
        if not len(prompts):
            return np.empty((0, encoded.n_examples, len(encoded.label_ids)), dtype=np.float32)
        return self._evaluator.label_scores(prompts, encoded)

    def _max_length(self) -> int:
        """Positions that the model has and its tokenizer admits."""
        limit = int(getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length)
        return min(limit - first_position(self._model), int(self._tokenizer.model_max_length))


def _common_prefix(rows: Sequence[TokenRow]) -> int:
    """Tokens at the left that all rows share, leaving every row at least its read position to compute."""
    shortest = min(row.read for row in rows)
    first = rows[0].ids
    differ: Callable[[int], bool] = lambda i: any(row.ids[i] != first[i] for row in rows)  # noqa: E731
    return next((i for i in range(shortest) if differ(i)), shortest)
