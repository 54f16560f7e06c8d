"""A frozen model is a model in one precision: loaded, checked, and ready to tokenise rows and to score them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from backends.local.answers import AnswerTokenizer, row_tokenizer
from backends.local.check import checked_evaluator
from backends.local.device import default_budget
from backends.local.encoder_decoder_check import checked_encoder_decoder
from backends.local.evaluation import Evaluator
from backends.local.loading import load
from backends.local.rows import LocalContexts, LocalPairs, LocalRows, common_prefix
from backends.local.source import Kind, position_limit
from backends.local.spread import DeviceMap
from backends.local.structure import first_position
from backends.local.targets import TargetEvaluator, checked_target_evaluator
from bbt.backend import Row, check_anchor
from bbt.errors import BackendError
from bbt.types import Prompts


@dataclass(frozen=True)
class Source:
    """Where a model comes from, and where it is to compute."""

    name: str
    """The model's bundled name, its folder or its name on the hub."""
    kind: Kind | None
    """Whether the model is masked, causal or an encoder-decoder (none: its config says which)."""
    device: torch.device
    """The device that computes."""
    revision: str | None
    """The revision on the hub (none: the latest)."""
    token_budget: int | None = None
    """The most tokens of one micro-batch (none: what suits the device, and on a GPU its free memory)."""
    device_map: DeviceMap | None = None
    """How the model is spread over several devices (none: it is on `device`)."""


class FrozenModel:
    """A model in the precision `dtype`; its `model` is as transformers loaded it and stays so.

    Raises:
        BackendError: it cannot be loaded, or bbt cannot score with it.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source = source
        loaded = load(source.name, source.kind, source.device, dtype, source.revision, source.device_map)
        self.model, self.tokenizer, self.kind, self.fingerprint = loaded
        if self.model.get_input_embeddings().weight.is_meta:
            raise BackendError("device_map puts the word embeddings where nothing computes: give them a device.")
        parts = self.model.config, self.model.generation_config if self.model.can_generate() else None
        self.row_tokenizer = row_tokenizer(self.kind, self.tokenizer, self.max_length, *parts)
        budget = source.token_budget or default_budget(self.model, self.device)
        self.evaluator: Evaluator
        if isinstance(self.row_tokenizer, AnswerTokenizer):
            frame = self.row_tokenizer.frame
            self.evaluator = checked_encoder_decoder(self.model, frame, self.max_length, budget)
        else:
            self.evaluator = checked_evaluator(self.model, self.kind, self.max_length, budget)

    @property
    def device(self) -> torch.device:
        """The device that computes; where the model is spread, the one of its word embeddings."""
        spread = self.source.device_map is not None
        return cast(torch.device, self.model.get_input_embeddings().weight.device) if spread else self.source.device

    @property
    def words(self) -> Tensor:
        """The word embeddings (vocabulary, E)."""
        return self.evaluator.words

    @cached_property
    def embedding_std(self) -> float:
        """The standard deviation over all numbers of the word embeddings."""
        return float(self.words.double().std().item())

    @cached_property
    def max_length(self) -> int:
        """The number of positions that the model has and its tokenizer admits."""
        limit = position_limit(self.model.config) or int(self.tokenizer.model_max_length)
        return min(limit - first_position(self.model.base_model), int(self.tokenizer.model_max_length))

    def encode(
        self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None, reserved: int = 0
    ) -> LocalRows:
        """Tokenise rows, `reserved` positions shorter than the model; see `Backend.encode`."""
        _require_rows(rows)
        label_ids = torch.tensor(self.row_tokenizer.label_ids(label_words, rows[0]), device=self.words.device)
        tokens = [self.row_tokenizer.row(row, reserved) for row in rows]
        n_prompt_tokens = _n_prompt_tokens(rows)
        n_prefix = common_prefix(tokens) if self.kind == "causal" and self.evaluator.shares_prefixes else 0
        encoded = LocalRows(tokens, label_ids, self.evaluator.head.of(label_ids), n_prompt_tokens, n_prefix)
        if anchor is not None and n_prompt_tokens:
            check_anchor(anchor, n_prompt_tokens, self.words.shape[1])
            self.evaluator.forward.structure.require_layernorm()
            encoded.anchor = self.evaluator.tensor(anchor)
        return encoded

    @cached_property
    def target_evaluator(self) -> TargetEvaluator:
        """The evaluator that scores targets of several tokens; it is made and checked when it is first asked for.

        Raises:
            BackendError: a masked LM, or one whose targets cannot be scored.
        """
        self._require_writer("scores targets of several tokens")
        if isinstance(self.evaluator, TargetEvaluator):
            return self.evaluator
        return checked_target_evaluator(self.model, self.evaluator, self.max_length)

    def encode_pairs(self, rows: Sequence[Row], reserved: int = 0) -> LocalPairs:
        """Tokenise rows that end in targets, `reserved` positions shorter than the model; see
        `TargetBackend.encode_pairs`."""
        longest = self.max_length if self.target_evaluator.shares_prefixes else 0
        _require_rows(rows)
        return LocalPairs(self.row_tokenizer.pairs(rows, reserved), _n_prompt_tokens(rows), longest)

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int, reserved: int = 0) -> LocalContexts:
        """Tokenise what stands left of targets, `reserved` positions shorter than the model; see
        `GenerationBackend.encode_contexts`."""
        self._require_writer("generates text")
        _require_rows(rows)
        contexts = [self.row_tokenizer.context(row, max_new_tokens, reserved) for row in rows]
        return LocalContexts(contexts, _n_prompt_tokens(rows), max_new_tokens)

    def _require_writer(self, does: str) -> None:
        if self.kind == "masked":
            raise BackendError(
                f"{self.source.name} is a masked LM, and only a causal LM (GPT's kind) or an encoder-decoder (T5's "
                f"kind) {does}: choose another model."
            )


def _require_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise BackendError("there are no rows to encode.")


def _n_prompt_tokens(rows: Sequence[Row]) -> int:
    return sum(segment.n_tokens for segment in rows[0])
