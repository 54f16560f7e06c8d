"""The gradient side of a local model has the forward path's rows, prompt places and head, and can be differentiated."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from backends.local.batching import micro_batches
from backends.local.encoding import TokenRow, prompt_id
from backends.local.generation import Prefix, generated
from backends.local.head import Head
from backends.local.structure import structure_of
from bbt.backend import Decoding, Row
from bbt.types import RowScores

if TYPE_CHECKING:
    from backends.local.frozen import FrozenModel
    from backends.local.rows import LocalContexts, LocalPairs, LocalRows


class TrainableModel:
    """The trainable copy of a local model (see `bbt.backend.Trainable`): `model` has fp32 weights of what the `frozen`
    one was loaded from."""

    def __init__(self, model: Any, frozen: "FrozenModel") -> None:
        self.model = model
        self._frozen, self._head = frozen, self._make_head()
        self._prefix = Prefix(0, lambda batch_size: None)

    def _make_head(self) -> Head:
        structure = structure_of(self.model)
        self._trunk = structure.trunk
        return Head(self.model, structure)

    def put_prefix(self, n_tokens: int, cache: Callable[[int], Any]) -> None:
        """Put keys and values left of every row; see `Trainable.put_prefix`."""
        self._prefix = Prefix(n_tokens, cache)

    def encode(self, rows: Sequence[Row], label_words: Sequence[str]) -> "LocalRows":
        """Tokenise rows, leaving room for the prefix."""
        return self._frozen.encode(rows, label_words, reserved=self._prefix.n_tokens)

    def logits(self, encoded: "LocalRows", rows: Sequence[int], prompt: Tensor | None = None) -> Tensor:
        """The logits (b, K) of the rows named, with gradients.

        Rows without a soft prompt go in by their token ids, as a user's own call of the model or of PEFT has them:
        RoBERTa counts its positions otherwise from embeddings, and then forgets a prefix.
        """
        with self._autocast():
            states = self._states([encoded.rows[row] for row in rows], [(0,)] * len(rows), prompt)
            return cast(Tensor, self._head.of(encoded.label_ids)(states))

    def _states(self, rows: Sequence[TokenRow], answers: Sequence[tuple[int, ...]], prompt: Tensor | None) -> Tensor:
        """The hidden states (P, H) from which the P tokens of the rows' answers are foretold, one row's after the
        other's: that which is read of the row, and those of all tokens of the answer but its last."""
        device = self.model.device
        ids = [torch.tensor((*row.ids, *said[:-1]), device=device) for row, said in zip(rows, answers, strict=True)]
        inputs, sizes = self._inputs(ids, prompt)
        mask, cache = _padding_mask(sizes, int(sizes.max()), self._prefix.n_tokens), self._prefix.cache(len(ids))
        states = self._trunk(**inputs, attention_mask=mask, past_key_values=cache).last_hidden_state
        return cast(Tensor, states[places([row.read for row in rows], answers, device)])

    def _inputs(self, ids: Sequence[Tensor], prompt: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Rows of token ids, filled up at the right, as the model is given them, and their lengths (b,)."""
        padded = pad_sequence(list(ids), batch_first=True)
        sizes = torch.tensor([len(row) for row in ids], device=padded.device)
        return {"input_ids": padded} if prompt is None else {"inputs_embeds": self._with_prompt(padded, prompt)}, sizes

    def _autocast(self) -> torch.autocast:
        """The context in which the forward pass runs under bf16, where the frozen model does."""
        half = self._frozen.words.dtype is torch.bfloat16
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=half)

    def _with_prompt(self, ids: Tensor, prompt: Tensor) -> Tensor:
        """The embeddings (b, N, H) of ids (b, N) with the prompt, one (T, H) for all rows or one (b, T, H) for each."""
        words: Tensor = self.model.get_input_embeddings()(ids.clamp(min=0))
        embeddings = words * self._frozen.evaluator.embedding_scale
        soft, own = ids < 0, prompt.expand(len(ids), -1, -1)
        embeddings[soft] = own[soft.nonzero()[:, 0], prompt_id(ids[soft])]
        return embeddings

    @torch.no_grad()
    def scores(self, encoded: "LocalRows") -> RowScores:
        """The logits (B, K) of all rows, without gradients, in micro-batches."""
        scores = torch.empty(encoded.n_examples, len(encoded.label_ids))
        with self._evaluating():
            for batch in micro_batches([len(ids) for ids in encoded.ids], 1, self._token_budget):
                scores[list(batch.rows)] = self.logits(encoded, batch.rows).cpu()
        return np.asarray(scores.numpy())

    def encode_pairs(self, rows: Sequence[Row]) -> "LocalPairs":
        """Tokenise rows that end in targets, leaving room for the prefix."""
        return self._frozen.encode_pairs(rows, reserved=self._prefix.n_tokens)

    def target_log_likelihoods(
        self, encoded: "LocalPairs", rows: Sequence[int], prompt: Tensor | None = None
    ) -> Tensor:
        """The log-likelihoods (b,) of the targets of the rows named, with gradients; see
        `Trainable.target_log_likelihoods`."""
        pairs = [encoded.pairs[row] for row in rows]
        targets = [pair.target for pair in pairs]
        with self._autocast():
            states = self._states([pair.context for pair in pairs], targets, prompt)
            logits: Tensor = self._head.of_vocabulary()(states)
        tokens = torch.tensor([token for target in targets for token in target], device=logits.device)
        which, _ = places([0] * len(pairs), targets, logits.device)
        found = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return logits.new_zeros(len(pairs)).index_add(0, which, found)

    @torch.no_grad()
    def target_scores(self, encoded: "LocalPairs") -> RowScores:
        """The log-likelihoods (B,) of all targets, without gradients, in micro-batches."""
        scores = torch.empty(encoded.n_examples)
        lengths = [len(pair.context.ids) + len(pair.target) for pair in encoded.pairs]
        with self._evaluating():
            for batch in micro_batches(lengths, 1, self._token_budget):
                scores[list(batch.rows)] = self.target_log_likelihoods(encoded, batch.rows).cpu()
        return np.asarray(scores.numpy())

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> "LocalContexts":
        """Tokenise what is written on from, leaving room for the prefix."""
        return self._frozen.encode_contexts(rows, max_new_tokens, reserved=self._prefix.n_tokens)

    def generate(self, encoded: "LocalContexts", decoding: Decoding) -> list[str]:
        """What the model writes after rows without prompt tokens; see `Trainable.generate`."""
        parts = (self.model, self._frozen.tokenizer, self._frozen.words, encoded.rows)
        nothing = self._frozen.words[:0]
        with self._evaluating(), self._autocast():
            return generated(*parts, nothing, decoding, self._token_budget, self._prefix)

    @property
    def _token_budget(self) -> int:
        return self._frozen.evaluator.token_budget

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """A context in which the model is in eval mode."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def text(self, token_ids: Sequence[int]) -> str:
        """The readable text of token ids."""
        return self._frozen.row_tokenizer.text(token_ids)

    def n_tokens(self, text: str) -> int:
        """The number of tokens of a text."""
        return len(self._frozen.row_tokenizer.text_ids(text))


def places(reads: Sequence[int], answers: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The row (P,) and the place in it (P,) of every state that foretells a token of an answer; the first token's is
    that of `reads`."""
    counts = torch.tensor([len(said) for said in answers])
    which = torch.arange(len(answers)).repeat_interleave(counts)
    at = torch.cat([read + torch.arange(len(said)) for read, said in zip(reads, answers, strict=True)])
    return which.to(device), at.to(device)


def _padding_mask(lengths: Tensor, width: int, past_length: int) -> Tensor | None:
    """The mask (S, past + N) of ones where a token stands; None where nothing is padded."""
    if bool((lengths == width).all()):
        return None
    places = torch.arange(past_length + width, device=lengths.device)
    return (places[None] < past_length + lengths[:, None]).long()
