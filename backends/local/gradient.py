"""The gradient side of a local model: the forward path's rows, prompt places and head, differentiable."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.local.batching import micro_batches
from backends.local.encoding import RowTokenizer, prompt_id
from backends.local.trunk import Trunk
from bbt.backend import Row
from bbt.types import RowScores

if TYPE_CHECKING:
    from backends.local.rows import LocalRows


class TrainableModel:
    """See `bbt.backend.Trainable`. `encode` is the backend's; `dtype` its precision."""

    def __init__(
        self,
        model: Any,
        tokenizer: RowTokenizer,
        encode: Callable[..., "LocalRows"],
        dtype: torch.dtype,
        token_budget: int,
    ) -> None:
        self.model = model
        self._trunk = Trunk(model)
        self._tokenizer, self._encode = tokenizer, encode
        self._dtype, self._token_budget = dtype, token_budget
        self._n_prefix = 0
        self._cache: Callable[[int], Any] = lambda batch_size: None

    def put_prefix(self, n_tokens: int, cache: Callable[[int], Any]) -> None:
        """Put keys and values left of every row; see `Trainable.put_prefix`."""
        self._n_prefix, self._cache = n_tokens, cache

    def encode(self, rows: Sequence[Row], label_words: Sequence[str]) -> "LocalRows":
        """Tokenise rows, leaving room for the prefix."""
        return self._encode(rows, label_words, reserved=self._n_prefix)

    def logits(self, encoded: "LocalRows", rows: Sequence[int], prompt: Tensor | None = None) -> Tensor:
        """(b, K) logits of the rows named, with gradients.

        Rows without a soft prompt go in by their token ids, as a user's own call of the model or of PEFT has them:
        RoBERTa counts its positions otherwise from embeddings, and then forgets a prefix.
        """
        ids = pad_sequence([encoded.ids[row] for row in rows], batch_first=True)
        sizes = torch.tensor([len(encoded.ids[row]) for row in rows], device=ids.device)
        read = torch.tensor([encoded.rows[row].read for row in rows], device=ids.device)
        tokens = ids if prompt is None else self._with_prompt(ids, prompt)
        autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=self._dtype is torch.bfloat16)
        with autocast, self._trunk.scoring(encoded.label_ids):
            cache = self._cache(len(rows))
            return self._trunk.differentiable_logits(tokens, sizes, read, cache, self._n_prefix)

    def _with_prompt(self, ids: Tensor, prompt: Tensor) -> Tensor:
        """(b, N, H) embeddings of ids (b, N) with the prompt, one (T, H) for all rows or one (b, T, H) each."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids.clamp(min=0))
        soft, own = ids < 0, prompt.expand(len(ids), -1, -1)
        embeddings[soft] = own[soft.nonzero()[:, 0], prompt_id(ids[soft])]
        return embeddings

    @torch.no_grad()
    def scores(self, encoded: "LocalRows") -> RowScores:
        """(B, K) logits of all rows, without gradients, in micro-batches."""
        scores = torch.empty(encoded.n_examples, len(encoded.label_ids))
        training = self.model.training
        self.model.eval()
        for batch in micro_batches([len(ids) for ids in encoded.ids], 1, self._token_budget):
            scores[list(batch.rows)] = self.logits(encoded, batch.rows).cpu()
        self.model.train(training)
        return np.asarray(scores.numpy())

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids as readable text."""
        return self._tokenizer.text(token_ids)
