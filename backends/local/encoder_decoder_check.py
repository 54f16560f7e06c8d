"""This check finds whether an encoder-decoder's scores are what a plain forward pass of the untouched model says: its
label scores, and the likelihoods of targets."""

import logging
from typing import Any

import torch
from torch import Tensor

from backends.local.answers import Frame
from backends.local.check import TOLERANCES
from backends.local.encoder_decoder import EncoderDecoderEvaluator, encoder_decoder_head
from backends.local.encoding import TokenPair, TokenRow, prompt_id
from backends.local.head import Head
from backends.local.rows import LocalPairs, LocalRows
from bbt.draws import stable_choice
from bbt.errors import BackendError

logger = logging.getLogger(__name__)

N_PROMPT_TOKENS, N_LABELS = 2, 32
LENGTHS = ((5, 3), (5, 1), (9, 2), (40, 8))
"""The numbers of tokens of the rows and of their targets that are checked; the first two have one row."""


def checked_encoder_decoder(model: Any, frame: Frame, max_length: int, token_budget: int) -> EncoderDecoderEvaluator:
    """Make the evaluator of an encoder-decoder, with a head for the label words alone where that agrees with a plain
    forward pass, else with its whole head.

    Raises:
        BackendError: neither agrees.
    """
    for whole in (False, True):
        try:
            head = encoder_decoder_head(model, whole)
            evaluator = EncoderDecoderEvaluator(model, head, token_budget)
            if _agrees(evaluator, head, model, frame, max_length):
                return evaluator
        except Exception as error:  # whatever an unknown architecture makes of what it does not know
            logger.info("%s: %s", type(model).__name__, error)
    raise BackendError(
        f"{type(model).__name__} is a kind of model that bbt cannot score with: its label scores and likelihoods were "
        "not those of a plain forward pass of transformers."
    )


def _agrees(evaluator: EncoderDecoderEvaluator, head: Head, model: Any, frame: Frame, max_length: int) -> bool:
    """Whether label scores and likelihoods are the expected ones, which may be no numbers where a model is broken."""
    words = evaluator.words
    pairs = _pairs(max_length, len(words), frame)
    prompts = words[torch.tensor([[7, 11], [13, 17]], device=words.device) % len(words)].float()
    label_ids = torch.arange(min(N_LABELS, len(words)), device=words.device)
    logits = [[_plain(model, words, pair, prompt) for pair in pairs] for prompt in prompts]
    expected = torch.stack([torch.stack([found[0, label_ids] for found in row]) for row in logits]).cpu()
    likely = torch.tensor(
        [[_likelihood(found, pair) for found, pair in zip(row, pairs, strict=True)] for row in logits]
    )
    rows = LocalRows([pair.context for pair in pairs], label_ids, head.of(label_ids), N_PROMPT_TOKENS, 0)
    candidates = prompts.cpu().numpy()
    scores = torch.from_numpy(evaluator.label_scores(candidates[:, None], rows))
    found = torch.from_numpy(evaluator.log_likelihoods(candidates, LocalPairs(pairs, N_PROMPT_TOKENS, 0)))
    if not bool(expected.isfinite().all() and likely.isfinite().all()):
        return True
    spread = max(float(found.std()) for row in logits for found in row)
    tolerance = TOLERANCES[words.dtype] * spread + 1e-6 * float(expected.abs().max())
    longest = max(len(pair.target) for pair in pairs)
    return bool((scores - expected).abs().max() <= tolerance and (found - likely).abs().max() <= tolerance * longest)


def _pairs(max_length: int, n_words: int, frame: Frame) -> list[TokenPair]:
    """Make rows of random tokens after a prompt with targets, as `LENGTHS` says. The decoder of the longest is given
    one token more than its start."""
    pairs = []
    for length, n_target in LENGTHS:
        length = min(length, max_length)
        prompt = [prompt_id(j) for j in range(N_PROMPT_TOKENS)]
        ids = (*prompt, *(int(i) for i in stable_choice(length, n_words, length - len(prompt))))
        start = (*frame.start, ids[-1]) if n_target == max(n for _, n in LENGTHS) else frame.start
        target = tuple(int(i) for i in stable_choice(100 + n_target, n_words, n_target))
        pairs.append(TokenPair(TokenRow(ids, length - 1, False, start), target))
    return pairs


@torch.inference_mode()
def _plain(model: Any, words: Tensor, pair: TokenPair, prompt: Tensor) -> Tensor:
    """The logits (N, V) of what the decoder says in the places of a target's N tokens, under one prompt (T, H)."""
    ids = torch.tensor([max(0, i) for i in pair.context.ids], device=words.device)
    embeddings = words[ids]
    embeddings[:N_PROMPT_TOKENS] = prompt.to(words.dtype)
    said = torch.tensor([*pair.context.decoder, *pair.target[:-1]], device=words.device)
    logits: Tensor = model(inputs_embeds=embeddings[None], decoder_input_ids=said[None]).logits
    return logits[0, len(pair.context.decoder) - 1 :].float()


def _likelihood(logits: Tensor, pair: TokenPair) -> float:
    """The log-likelihood of a target, given the logits (N, V) in its places."""
    ids = torch.tensor(pair.target, device=logits.device)
    return float(logits.log_softmax(-1).gather(-1, ids[:, None]).sum())
