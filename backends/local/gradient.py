"""The gradient side of a local model has the forward path's rows, prompt places and head, and can be differentiated."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.local.batching import micro_batches
from backends.local.encoding import TokenRow, prompt_id
from backends.local.head import Head
from backends.local.structure import structure_of
from bbt.backend import Row
from bbt.types import RowScores

if TYPE_CHECKING:
    from backends.local.frozen import FrozenModel
    from backends.local.rows import LocalRows


class TrainableModel:
    """The trainable copy of a local model (see `bbt.backend.Trainable`): `model` has fp32 weights of what the `frozen`
    one was loaded from."""

    def __init__(self, model: Any, frozen: "FrozenModel") -> None:
        self.model = model
        self._frozen, self._head = frozen, self._make_head()
        self._n_prefix = 0
        self._cache: Callable[[int], Any] = lambda batch_size: None

    def _make_head(self) -> Head:
        structure = structure_of(self.model)
        self._trunk = structure.trunk
        return Head(self.model, structure)

    def put_prefix(self, n_tokens: int, cache: Callable[[int], Any]) -> None:
        """Put keys and values left of every row; see `Trainable.put_prefix`."""
        self._n_prefix, self._cache = n_tokens, cache

    def encode(self, rows: Sequence[Row], label_words: Sequence[str]) -> "LocalRows":
        """Tokenise rows, leaving room for the prefix."""
        return self._frozen.encode(rows, label_words, reserved=self._n_prefix)

    def logits(self, encoded: "LocalRows", rows: Sequence[int], prompt: Tensor | None = None) -> Tensor:
        """The logits (b, K) of the rows named, with gradients.

        Rows without a soft prompt go in by their token ids, as a user's own call of the model or of PEFT has them:
        RoBERTa counts its positions otherwise from embeddings, and then forgets a prefix.
        """
        ids = pad_sequence([encoded.ids[row] for row in rows], batch_first=True)
        sizes = torch.tensor([len(encoded.ids[row]) for row in rows], device=ids.device)
        inputs = {"input_ids": ids} if prompt is None else {"inputs_embeds": self._with_prompt(ids, prompt)}
        half = self._frozen.words.dtype is torch.bfloat16
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half):
            states = self._states(inputs, sizes, [encoded.rows[row] for row in rows])
            return cast(Tensor, self._head.of(encoded.label_ids)(states))

    def _states(self, inputs: dict[str, Tensor], sizes: Tensor, rows: Sequence[TokenRow]) -> Tensor:
        """The last hidden states (b, H) that are read of rows, whose numbers of tokens are `sizes` (b,)."""
        (given,) = inputs.values()
        mask, cache = _padding_mask(sizes, given.shape[1], self._n_prefix), self._cache(len(rows))
        output = self._trunk(**inputs, attention_mask=mask, past_key_values=cache)
        read = torch.tensor([row.read for row in rows], device=given.device)
        return cast(Tensor, output.last_hidden_state[torch.arange(len(rows), device=given.device), read])

    def _with_prompt(self, ids: Tensor, prompt: Tensor) -> Tensor:
        """The embeddings (b, N, H) of ids (b, N) with the prompt, one (T, H) for all rows or one (b, T, H) for each."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids.clamp(min=0))
        soft, own = ids < 0, prompt.expand(len(ids), -1, -1)
        embeddings[soft] = own[soft.nonzero()[:, 0], prompt_id(ids[soft])]
        return embeddings

    @torch.no_grad()
    def scores(self, encoded: "LocalRows") -> RowScores:
        """The logits (B, K) of all rows, without gradients, in micro-batches."""
        scores = torch.empty(encoded.n_examples, len(encoded.label_ids))
        training = self.model.training
        self.model.eval()
        for batch in micro_batches([len(ids) for ids in encoded.ids], 1, self._frozen.evaluator.token_budget):
            scores[list(batch.rows)] = self.logits(encoded, batch.rows).cpu()
        self.model.train(training)
        return np.asarray(scores.numpy())

    def text(self, token_ids: Sequence[int]) -> str:
        """The readable text of token ids."""
        return self._frozen.row_tokenizer.text(token_ids)


def _padding_mask(lengths: Tensor, width: int, past_length: int) -> Tensor | None:
    """The mask (S, past + N) of ones where a token stands; None where nothing is padded."""
    if bool((lengths == width).all()):
        return None
    places = torch.arange(past_length + width, device=lengths.device)
    return (places[None] < past_length + lengths[:, None]).long()
