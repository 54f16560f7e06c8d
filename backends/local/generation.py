"""A causal LM or an encoder-decoder writes text here: `transformers` generates it from the embeddings of rows of
several lengths at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backends.local.encoding import TokenRow, prompt_id
from backends.local.sampling import Draw
from bbt.backend import Decoding


@dataclass(frozen=True)
class Prefix:
    """Keys and values that stand left of every row in every layer."""

    n_tokens: int
    """The number of tokens that they are of."""
    cache: Callable[[int], Any]
    """A function that makes them, as a `transformers` Cache, for a batch of the size given; None for no tokens."""


@torch.inference_mode()
def generated(
    model: Any,
    tokenizer: Any,
    words: Tensor,
    rows: Sequence[TokenRow],
    prompt: Tensor,
    decoding: Decoding,
    token_budget: int,
    prefix: Prefix | None = None,
) -> list[str]:
    """Have the model write a text after each row under one prompt (T, E), in batches of at most `token_budget` tokens,
    those of all beams, the new ones and the padding included.

    Rows without a soft prompt go in by their token ids, as a user's own call of the model or of PEFT has them; only
    they may follow a `prefix`. Nothing outlives the call, and it may be made from several threads at once.
    """
    texts = [""] * len(rows)
    ends = end_ids(model, tokenizer)
    for batch in _batches([len(row.ids) for row in rows], decoding, token_budget):
        inputs, n_given = _inputs(words, [rows[i] for i in batch], prompt, prefix)
        ids = model.generate(
            **inputs,
            generation_config=_config(decoding, ends),
            logits_processor=[Draw([rows[i].ids for i in batch], decoding)] if decoding.sample else None,
            stopping_criteria=[_Ended(tokenizer, decoding.stop, n_given)] if decoding.stop else None,
        )
        for i, new in zip(batch, ids[:, n_given:].tolist(), strict=True):
            texts[i] = written(tokenizer, new, ends, decoding.stop, skips_special=bool(rows[i].decoder))
    return texts


def _batches(lengths: Sequence[int], decoding: Decoding, token_budget: int) -> Iterator[list[int]]:
    """Yield the rows, by number and the longest first, that are written on together: one at least, and as many as have
    room when they are as long as the first, with all that is new."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        each = decoding.n_beams * (lengths[order[0]] + decoding.max_new_tokens)
        n_rows = max(1, token_budget // each)
        yield order[:n_rows]
        order = order[n_rows:]


def embedded(words: Tensor, row: TokenRow, prompt: Tensor) -> Tensor:
    """Embed a row's N tokens with the prompt (T, E) in its places, as (N, E)."""
    ids = torch.tensor(row.ids, device=words.device)
    embeddings, soft = words[ids.clamp(min=0)], ids < 0
    embeddings[soft] = prompt[prompt_id(ids[soft])].to(embeddings.dtype)
    return embeddings


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Find the ids of the tokens that end a sequence, as the model says, or else its tokenizer."""
    for ends in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        if ends is not None:
            return list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]
    return []


def written(
    tokenizer: Any, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str], skips_special: bool = False
) -> str:
    """Write new tokens as text, up to the token or the stop string that ended them, without blanks around it. Special
    tokens are left out where `skips_special`: T5's kind may say its sentinels."""
    length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = str(tokenizer.decode(ids[:length], skip_special_tokens=skips_special))
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))].strip()


class _Ended:
    """A stopping criterion: a row has ended where its text holds a stop string. It is looked for in the text, since
    tokens may hold more than it, or a part of it (`StopStringCriteria` of transformers refuses strings that no one
    token of the vocabulary ends with)."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], n_given: int) -> None:
        self._tokenizer, self._stop, self._n_given = tokenizer, stop, n_given

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tell which rows have ended (B,), from their tokens (B, N), of which the first were given."""
        texts = [self._tokenizer.decode(row) for row in input_ids[:, self._n_given :].tolist()]
        return torch.tensor([any(one in text for one in self._stop) for text in texts], device=input_ids.device)


def _config(decoding: Decoding, ends: list[int]) -> Any:
    """Make the settings of `generate`. Nothing is left to the defaults that a model brings along, which may sample or
    punish repetitions. A token that `Draw` leaves is the likeliest."""
    from transformers import GenerationConfig

    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=decoding.n_beams,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        min_length=0,
        early_stopping=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )


def _inputs(
    words: Tensor, rows: Sequence[TokenRow], prompt: Tensor, prefix: Prefix | None
) -> tuple[dict[str, Any], int]:
    """Make what `generate` is given of B rows: token ids (B, N), or embeddings (B, N, E) where there is a prompt, the
    mask of the places that count, and for an encoder-decoder what its decoder says first. Rows are filled up at the
    left, and for an encoder at the right. With it comes the number of the token ids that `generate` gives back before
    the new ones."""
    decodes = bool(rows[0].decoder)
    parts = [embedded(words, r, prompt) if len(prompt) else torch.tensor(r.ids, device=words.device) for r in rows]
    filled, mask = _padded(parts, at_left=not decodes)
    given: dict[str, Any] = {"inputs_embeds" if len(prompt) else "input_ids": filled, "attention_mask": mask}
    n_given, n_prefix = 0 if len(prompt) else filled.shape[1], prefix.n_tokens if prefix else 0
    if decodes:
        given["decoder_input_ids"] = torch.tensor([row.decoder for row in rows], device=words.device)
        n_given = len(rows[0].decoder)
    if prefix and n_prefix:
        given["past_key_values"] = prefix.cache(len(rows))
        if not decodes:
            given["attention_mask"] = torch.cat([mask.new_ones(len(rows), n_prefix), mask], dim=1)
    return given, n_given


def _padded(rows: Sequence[Tensor], at_left: bool) -> tuple[Tensor, Tensor]:
    """Fill rows (N, ...) up with zeros, at the left or at the right: the rows (B, N, ...), and the mask (B, N) of the
    places that count."""
    width = max(len(row) for row in rows)
    filled = rows[0].new_zeros(len(rows), width, *rows[0].shape[1:])
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        begin = (width - len(row)) * at_left
        filled[i, begin : begin + len(row)] = row
        mask[i, begin : begin + len(row)] = 1
    return filled, mask
