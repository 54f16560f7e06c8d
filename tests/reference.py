"""What `transformers` itself says: one row at a time, the whole head, a softmax over the whole vocabulary.

Nothing of `backends` is used. The prompt's places are marked in the natural string by an extra special token,
whose embeddings are then replaced by the prompt.
"""

import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

SLOT = "<prompt-token>"
SENTINEL = "<extra_id_0>"
AUTO = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class Reference:
    """A folder's model as anybody would load it."""

    folder: Path
    kind: str

    @cached_property
    def model(self):
        return AUTO[self.kind].from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def tokenizer(self):
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        tokenizer.add_tokens(AddedToken(SLOT, special=True), special_tokens=True)
        return tokenizer

    def ids(self, natural: str, shares=(), text="", text_pair="") -> list[int]:
        """Token ids of the filled-in string, `SLOT`s where soft tokens stand; one space left of a slot is the first
        token's, or the label word's."""
        for share in shares:
            natural = re.sub(" ?{prompt}", SLOT * share, natural, count=1)
        natural = natural.replace(" {mask}", "{mask}")
        mask = self.tokenizer.mask_token or ""
        if self.kind == "encoder-decoder":
            shown = SENTINEL if SENTINEL in self.tokenizer.get_vocab() else mask
            mask = "" if natural.endswith("{mask}") else shown
        filled = natural.format(text=text, text_pair=text_pair, mask=mask)
        return self.tokenizer(filled)["input_ids"]

    @torch.no_grad()
    def log_probs(self, ids, prompt, words, after_layernorm=None) -> np.ndarray:
        """(K,) log-probabilities of the words, renormalised; offsets (T, H) are added after the LayerNorm."""
        ids = torch.tensor(ids)
        slots = ids == self.tokenizer.convert_tokens_to_ids(SLOT)
        embeddings = self.model.get_input_embeddings()(ids.masked_fill(slots, 0))
        embeddings[slots] = torch.from_numpy(prompt)
        with self._adding(slots, after_layernorm):
            logits = self.model(inputs_embeds=embeddings[None], **self.decoded(ids[~slots])).logits[0]
        at = -1 if self.kind != "masked" else ids.tolist().index(self.tokenizer.mask_token_id)
        chosen = logits[at].log_softmax(-1)[[self.word_id(word) for word in words]]
        return chosen.log_softmax(-1).numpy()

    def decoded(self, ids) -> dict:
        """What the decoder is given, from the encoder's ids without the prompt. BART's mask is read where the decoder
        is given the row itself, shifted, as in the documentation of `BartForConditionalGeneration`."""
        if self.kind != "encoder-decoder":
            return {}
        start, bos = self.model.config.decoder_start_token_id, self.model.generation_config.forced_bos_token_id
        begun = [start] if bos is None else [start, bos]
        if self.tokenizer.mask_token_id in ids.tolist():
            begun = [start, *ids[: ids.tolist().index(self.tokenizer.mask_token_id)].tolist()]
        sentinel = self.tokenizer.get_vocab().get(SENTINEL)
        begun += [sentinel] if sentinel in ids.tolist() else []
        return {"decoder_input_ids": torch.tensor([begun])}

    def word_id(self, word: str) -> int:
        (only,) = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return only

    @contextmanager
    def _adding(self, slots, offsets):
        def add(module, args, output):
            output[0, slots] += torch.from_numpy(offsets)
            return output

        if offsets is None:
            yield
            return
        handle = self.model.base_model.embeddings.LayerNorm.register_forward_hook(add)
        yield
        handle.remove()


def normalised(scores: np.ndarray) -> np.ndarray:
    """Scores less the constant in which they are free: log-probabilities over the label words."""
    return torch.from_numpy(scores).log_softmax(-1).numpy()
