"""A causal LM writes text here: `transformers` generates it from the embeddings of rows of several lengths at once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.local.encoding import TokenRow, prompt_id
from backends.local.sampling import Draw
from bbt.backend import Decoding


@torch.inference_mode()
def generated(
    model: Any,
    tokenizer: Any,
    words: Tensor,
    rows: Sequence[TokenRow],
    prompt: Tensor,
    decoding: Decoding,
    token_budget: int,
) -> list[str]:
    """Have the model write a text after each row under one prompt (T, E), in batches of at most `token_budget` tokens,
    those of all beams, the new ones and the padding included.

    Nothing outlives the call, and it may be made from several threads at once.
    """
    texts = [""] * len(rows)
    ends = end_ids(model, tokenizer)
    for batch in _batches([len(row.ids) for row in rows], decoding, token_budget):
        embeddings, mask = _left_padded([embedded(words, rows[i], prompt) for i in batch])
        ids = model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            generation_config=_config(decoding, ends),
            logits_processor=[Draw([rows[i].ids for i in batch], decoding)] if decoding.sample else None,
            stopping_criteria=[_Ended(tokenizer, decoding.stop)] if decoding.stop else None,
        )
        for i, new in zip(batch, ids.tolist(), strict=True):
            texts[i] = written(tokenizer, new, ends, decoding.stop)
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


def written(tokenizer: Any, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str]) -> str:
    """Write new tokens as text, up to the token or the stop string that ended them, without blanks around it."""
    length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = str(tokenizer.decode(ids[:length]))
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))].strip()


class _Ended:
    """A stopping criterion: a row has ended where its text holds a stop string. It is looked for in the text, since
    tokens may hold more than it, or a part of it (`StopStringCriteria` of transformers refuses strings that no one
    token of the vocabulary ends with)."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tell which rows have ended (B,), from their new tokens (B, N)."""
        texts = [self._tokenizer.decode(row) for row in input_ids.tolist()]
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
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )


def _left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Fill rows up at the left: embeddings (B, N, E), and the mask (B, N) of the places that count."""
    width = max(len(row) for row in rows)
    embeddings = rows[0].new_zeros(len(rows), width, rows[0].shape[-1])
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        embeddings[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return embeddings, mask
