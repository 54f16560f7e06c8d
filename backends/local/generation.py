"""A causal LM or an encoder-decoder writes text here: `transformers` generates it from the embeddings of rows of
several lengths at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.local.batching import micro_batches
from backends.local.encoding import TokenRow, prompt_id
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
    """Have the model write a text after each row under one prompt (T, E), in micro-batches of at most `token_budget`
    tokens, those of all beams and the new ones included."""
    lengths = [decoding.n_beams * (len(row.ids) + decoding.max_new_tokens) for row in rows]
    texts = [""] * len(rows)
    ends, begun = end_ids(model, tokenizer), [list(row.decoder) for row in rows]
    with torch.random.fork_rng(devices=[words.device] if words.device.type == "cuda" else []):
        torch.manual_seed(decoding.seed)
        for batch in micro_batches(lengths, 1, token_budget):
            n_begun = len(begun[batch.rows[0]])
            embeddings, mask = _padded([embedded(words, rows[i], prompt) for i in batch.rows], at_left=not n_begun)
            said = {"decoder_input_ids": torch.tensor([begun[i] for i in batch.rows], device=words.device)}
            ids = model.generate(
                inputs_embeds=embeddings,
                attention_mask=mask,
                generation_config=_config(decoding, ends),
                stopping_criteria=[_Ended(tokenizer, decoding.stop, n_begun)] if decoding.stop else None,
                **(said if n_begun else {}),
            )
            for i, new in zip(batch.rows, ids[:, n_begun:].tolist(), strict=True):
                texts[i] = written(tokenizer, new, ends, decoding.stop, skips_special=n_begun > 0)
    return texts


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

    def __init__(self, tokenizer: Any, stop: Sequence[str], n_begun: int) -> None:
        self._tokenizer, self._stop, self._n_begun = tokenizer, stop, n_begun

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Tell which rows have ended (B,), from their tokens (B, N), of which the first `n_begun` are not new."""
        texts = [self._tokenizer.decode(row) for row in input_ids[:, self._n_begun :].tolist()]
        return torch.tensor([any(one in text for one in self._stop) for text in texts], device=input_ids.device)


def _config(decoding: Decoding, ends: list[int]) -> Any:
    """Make the settings of `generate`. Nothing is left to the defaults that a model brings along, which may sample or
    punish repetitions."""
    from transformers import GenerationConfig

    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=decoding.max_new_tokens,
        do_sample=decoding.sample,
        num_beams=decoding.n_beams,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        length_penalty=1.0,
        min_length=0,
        early_stopping=False,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **drawn,
    )


def _padded(rows: Sequence[Tensor], at_left: bool) -> tuple[Tensor, Tensor]:
    """Fill rows up, at the left where they are to be gone on from: embeddings (B, N, E), and the mask (B, N) of the
    places that count."""
    width = max(len(row) for row in rows)
    embeddings = rows[0].new_zeros(len(rows), width, rows[0].shape[-1])
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=rows[0].device)
    for i, row in enumerate(rows):
        begin = (width - len(row)) * at_left
        embeddings[i, begin : begin + len(row)] = row
        mask[i, begin : begin + len(row)] = 1
    return embeddings, mask
