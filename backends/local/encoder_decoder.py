"""An encoder-decoder scores whole populations here: the encoder runs once for each candidate and row, and the decoder
on all that is asked of that row.

The soft prompt stands in the encoder's input. Rows of about one length are padded to the longest of a micro-batch: the
encoder sees neither packed rows nor kept prefixes, because every token attends to all of its row.
"""

import copy
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from backends.local.batching import micro_batches
from backends.local.encoding import TokenRow, prompt_id
from backends.local.forward import Forward
from backends.local.head import Head
from backends.local.plans import Plan
from backends.local.rows import LocalPairs, LocalRows, Shared
from backends.local.structure import Structure, embedding_scale, replaced, word_embeddings
from backends.local.targets import POSITIONS_AT_ONCE, TargetEvaluator
from bbt.types import Prompts, RowScores

Target: TypeAlias = tuple[int, ...]
"""A target's token ids."""


class EncoderThenDecoder(nn.Module):
    """What an encoder-decoder does between its embeddings and its head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = model.get_encoder(), model.get_decoder()

    def forward(self, embeddings: Tensor, mask: Tensor, decoder_ids: Tensor, last: Tensor) -> Tensor:
        """Compute the decoder's hidden states (S, H) at the places `last` (S,) of its ids (S, M), for encoder inputs
        (S, N, E) with their mask (S, N)."""
        encoded = self.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        states = self.decoder(input_ids=decoder_ids, use_cache=False, **seen).last_hidden_state
        return cast(Tensor, states[torch.arange(len(states), device=states.device), last])


class HeadAlone(nn.Module):
    """What an encoder-decoder does after its decoder; it is called as other models are, with embeddings that go through
    a trunk: here the decoder's. It shares all weights with the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder, words = model.get_decoder(), model.get_input_embeddings()
        unused = {
            module: nn.Identity() for module in (model.get_encoder(), words) if module not in {*decoder.modules()}
        }
        self.model: Any = _with_bias_in_last_layer(replaced(model, unused))

    def get_output_embeddings(self) -> Any:
        """The layer that makes the logits."""
        return self.model.get_output_embeddings()

    def forward(self, inputs_embeds: Tensor) -> Any:
        """Compute the model's output from what its decoder is given."""
        from transformers.modeling_outputs import BaseModelOutput

        encoded = BaseModelOutput(last_hidden_state=cast(Any, inputs_embeds))
        return self.model(encoder_outputs=encoded, decoder_inputs_embeds=inputs_embeds, use_cache=False)


def _with_bias_in_last_layer(model: Any) -> Any:
    """Move the bias that BART's kind adds to its logits into the layer that makes them, so that some rows of it can be
    computed alone. The model is returned as a copy where it has one."""
    bias, layer = getattr(model, "final_logits_bias", None), model.get_output_embeddings()
    if bias is None or not isinstance(layer, nn.Linear):
        return model
    own = copy.copy(layer)
    own._parameters = dict(layer._parameters, bias=nn.Parameter(bias[0], requires_grad=False))
    model = replaced(model, {layer: own})
    model._buffers = {**model._buffers, "final_logits_bias": bias.new_zeros(1, 1)}
    return model


def encoder_decoder_structure(model: Any) -> Structure:
    """The parts of an encoder-decoder as far as others have them: its trunk is the decoder, and it has no chain of
    layers for deep prompts and no place for an anchor."""
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    hidden_size = int(model.config.hidden_size)
    return Structure(
        model.get_decoder(), BaseModelOutputWithPastAndCrossAttentions, (), False, hidden_size, None, None, False
    )


def encoder_decoder_head(model: Any, whole: bool = False) -> Head:
    """The maker of heads for label words; see `Head`."""
    return Head(HeadAlone(model), encoder_decoder_structure(model), whole)


@dataclass
class Contexts:
    """Different contexts whose decoder begins with as many tokens, each with all of its targets."""

    rows: list[TokenRow]
    """(b,) the contexts."""
    targets: list[list[Target]]
    """(b,) the targets of each."""
    places: list[int]
    """The places that the targets, one context's after the other's, have in their split."""

    def __post_init__(self) -> None:
        # The tokens of each context, and for each of its targets those of which the decoder keeps keys and values.
        self.lengths = [
            len(row.ids) + sum(len(row.ids) + len(row.decoder) + len(target) for target in targets)
            for row, targets in zip(self.rows, self.targets, strict=True)
        ]
        self.plans: dict[Hashable, list[Plan]] = {}


def contexts_of(pairs: LocalPairs) -> Iterator[Contexts]:
    """Yield the pairs by context, those whose decoder begins with as many tokens together."""
    which: dict[int, dict[TokenRow, list[int]]] = {}
    for i, pair in enumerate(pairs.pairs):
        which.setdefault(len(pair.context.decoder), {}).setdefault(pair.context, []).append(i)
    for of_context in which.values():
        targets = [[pairs.pairs[i].target for i in places] for places in of_context.values()]
        yield Contexts(list(of_context), targets, [i for places in of_context.values() for i in places])


class EncoderDecoderEvaluator(TargetEvaluator):
    """A scorer of label words and of targets, in micro-batches of at most `token_budget` tokens; see `Evaluator`."""

    def __init__(self, model: Any, head: Head, token_budget: int) -> None:
        encoder = model.get_encoder()
        self.embedding_scale = embedding_scale(encoder)
        words = word_embeddings(encoder)
        words = words if self.embedding_scale == 1 else words * self.embedding_scale
        super().__init__(Forward(encoder_decoder_structure(model), None), head, words, token_budget)
        self._trunk = EncoderThenDecoder(model)

    @property
    def trunk(self) -> nn.Module:
        """The encoder with the decoder after it."""
        return self._trunk

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values of a prefix are computed once for each candidate: they change with what is right of
        it."""
        return False

    def _scores_of_block(self, vectors: Tensor, rows: LocalRows, shared: Shared | None, budget: int) -> Tensor:
        """Compute the scores (n, B, K) of prompts (n, 1, T, H)."""
        scores = torch.empty(len(vectors), rows.n_examples, len(rows.label_ids), device=vectors.device)
        lengths = [len(row.ids) + len(row.decoder) for row in rows.rows]
        for batch in micro_batches(lengths, len(vectors), budget, padded=True):
            n, some = batch.stop - batch.start, [rows.rows[i] for i in batch.rows]
            ids, last = decoder_inputs(some, self.words.device)
            states = self._trunk(*self._inputs(vectors[batch.chosen, 0], some), ids.repeat(n, 1), last.repeat(n))
            scores[batch.chosen, list(batch.rows)] = rows.head(states).unflatten(0, (-1, len(some)))
        return scores

    def _inputs(self, prompts: Tensor, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
        """Embed rows under prompts (n, T, H) for the encoder: (n * b, N, E), with the mask (n * b, N) of their
        tokens."""
        device, n = self.words.device, len(prompts)
        ids = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        embeddings, soft = self.words[ids.clamp(min=0)].repeat(n, 1, 1, 1), ids < 0
        embeddings[:, soft] = prompts[:, prompt_id(ids[soft])].to(embeddings.dtype)
        mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
        return embeddings.flatten(0, 1), mask.repeat(n, 1)

    def log_likelihoods(self, prompts: Prompts, pairs: LocalPairs) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets in nats under soft prompts (n, T, H).

        Raises:
            BackendError: one sequence alone does not fit into memory.
        """
        found = np.empty((len(prompts), pairs.n_examples), np.float32)
        if len(prompts):
            for contexts in contexts_of(pairs):
                compute = partial(self._of_contexts, prompts, contexts)
                found[:, contexts.places] = self._fitting(contexts, compute)
        return found

    @torch.inference_mode()
    def _of_contexts(self, prompts: Prompts, contexts: Contexts, budget: int) -> RowScores:
        vectors, parts = self.tensor(prompts), contexts.targets
        begins = np.cumsum([0, *map(len, parts)])
        found = torch.empty(len(vectors), begins[-1], device=vectors.device)
        for batch in micro_batches(contexts.lengths, len(vectors), budget, padded=True):
            places = np.concatenate([np.arange(begins[i], begins[i + 1]) for i in batch.rows])
            found[batch.chosen, self.tensor(places)] = self._of_targets(
                vectors[batch.chosen], [contexts.rows[i] for i in batch.rows], [parts[i] for i in batch.rows]
            )
        return np.asarray(found.cpu().numpy())

    def _of_targets(self, prompts: Tensor, rows: Sequence[TokenRow], parts: Sequence[Sequence[Target]]) -> Tensor:
        """Compute the log-likelihoods (n, b) of all rows' targets, one row's after the other's, under prompts
        (n, T, H). What the decoder makes of its start and of the encoder's states is kept for all targets of a row."""
        n, device = len(prompts), self.words.device
        embeddings, mask = self._inputs(prompts, rows)
        encoded = self._trunk.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        start = torch.tensor([row.decoder for row in rows], device=device).repeat(n, 1)
        seen = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        begun = self._trunk.decoder(input_ids=start, use_cache=True, **seen)
        first, kept = begun.last_hidden_state[:, -1:], begun.past_key_values
        counts = torch.tensor([len(part) for part in parts], device=device).repeat(n)
        row_of = torch.arange(len(encoded), device=device).repeat_interleave(counts)
        targets = [torch.tensor(target) for part in parts for target in part]
        ids = pad_sequence(targets, batch_first=True).to(device).repeat(n, 1)
        states = first[row_of]
        if ids.shape[1] > 1:
            if len(row_of) > len(encoded):
                kept.batch_select_indices(row_of)
                seen = {name: value[row_of] for name, value in seen.items()}
            said = self._trunk.decoder(input_ids=ids[:, :-1], past_key_values=kept, use_cache=True, **seen)
            states = torch.cat([states, said.last_hidden_state], dim=1)
        lengths = torch.tensor([len(target) for target in targets], device=device).repeat(n)
        real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        found = torch.zeros(ids.shape, device=device)
        parts_of = zip(*(torch.split(one[real], POSITIONS_AT_ONCE) for one in (states, ids)), strict=True)
        found[real] = torch.cat([self._foretold(some, tokens) for some, tokens in parts_of])
        return found.sum(1).view(n, -1)

    def _foretold(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The log-likelihoods (P,) of tokens (P,) that come next after hidden states (P, H)."""
        logits: Tensor = self.vocabulary(states)
        return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def decoder_inputs(rows: Sequence[TokenRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """The ids (b, M) that the decoder is given, filled up at the right, which no token left of it sees; and the places
    (b,) of each row's last one."""
    ids = pad_sequence([torch.tensor(row.decoder) for row in rows], batch_first=True)
    return ids.to(device), torch.tensor([len(row.decoder) - 1 for row in rows], device=device)
