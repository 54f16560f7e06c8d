"""This check finds whether what leaves the evaluation path is what a plain forward pass of the untouched model says.

The plain pass is `model(inputs_embeds=...)` for one row and one prompt at a time; nothing of the evaluation path is in
it. Rows are of several lengths, up to as long as is worth the time.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backends.local.encoding import TokenRow, prompt_id
from backends.local.evaluation import Evaluator, is_out_of_memory
from backends.local.forward import Forward
from backends.local.head import Head
from backends.local.packing import packed_trunk, require_plain_masks
from backends.local.rows import LocalRows
from backends.local.structure import Structure, structure_of, word_embeddings
from backends.local.unequal import kernel_for
from bbt.draws import stable_choice
from bbt.errors import BackendError

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far scores may be from plain ones, in standard deviations of the scores."""
SHORT, LONG = (3, 5), (64,)
"""Lengths in tokens of the rows that are scored under two prompts, and of those scored under one."""
LONGEST = 1e9
"""Weights of the trunk times tokens of one more long row: a twentieth of a second on one core in fp32."""
LONGEST_ROW = 2048
"""The most tokens of that row, whose attention may take memory by their square."""
N_PROMPT_TOKENS, N_LABELS = 2, 32


@dataclass(frozen=True)
class Case:
    """A case on which an evaluator is tried."""

    rows: list[TokenRow]
    """(B,) rows of random tokens."""
    vectors: Tensor
    """(n, T, E) prompts."""
    expected: Tensor
    """(n, B, K) scores that a plain forward pass gives."""


def checked_evaluator(model: Any, kind: str, max_length: int, token_budget: int) -> Evaluator:
    """Find the fastest evaluator of the model that says what a plain forward pass says.

    Raises:
        BackendError: none does, or the model is of a kind that cannot be scored with.
    """
    with _cannot_score_with(model):
        structure, words = structure_of(model), word_embeddings(model)
        label_ids = torch.arange(min(N_LABELS, len(words)), device=words.device)
        if kind == "causal":
            _require_causal(model, words, label_ids)
        cases = list(_cases(model, structure, kind, max_length, words, label_ids))
    for forward, head in _ways(model, structure, words, max_length):
        evaluator = Evaluator(forward, head, words, token_budget)
        if all(_agrees(evaluator, case, label_ids, kind) for case in cases):
            return evaluator
        if forward.kernel is not None:
            logger.warning("%s: attention of unequal lengths in one call is not used here.", type(model).__name__)
    raise BackendError(
        f"{type(model).__name__} is a kind of model that bbt cannot score with: its label scores were not those of a "
        "plain forward pass of transformers."
    )


@contextmanager
def _cannot_score_with(model: Any) -> Iterator[None]:
    """A context for plain forward passes of embeddings, which some architectures do not take.

    Raises:
        BackendError: in place of whatever such an architecture raises.
    """
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(
            f"{type(model).__name__} is a kind of model that bbt cannot score with: a forward pass of transformers "
            f"that is given embeddings in the place of tokens fails ({type(error).__name__}: {reason})."
        ) from error


@torch.inference_mode()
def _require_causal(model: Any, words: Tensor, label_ids: Tensor) -> None:
    """Check that no token's logits depend on the tokens after it.

    Raises:
        BackendError: they do, as those of a BERT that was saved as a decoder without `is_decoder`, or of XLNet.
    """
    ids = torch.arange(6, device=words.device).repeat(2, 1)
    ids[1, -1] += 1
    first, second = model(inputs_embeds=words[ids % len(words)]).logits[:, :-1, label_ids].float()
    if bool((first - second).abs().max() > TOLERANCES[words.dtype] * first.std()):
        raise BackendError(
            f"{type(model).__name__} is no causal LM here: what it says after a token depends on later ones. Take a "
            "causal LM, leave the backend's option kind out, or, if it was trained to read from the left, put "
            "is_decoder: true into its config.json."
        )


def _ways(model: Any, structure: Structure, words: Tensor, max_length: int) -> Iterator[tuple[Forward, Head]]:
    """Yield the ways to evaluate the model, from the fastest to the simplest."""
    decoder, kernel = model.get_output_embeddings(), kernel_for(words)
    has_rows = isinstance(decoder, nn.Linear) and decoder.out_features >= len(words)
    for whole in (False, True) if has_rows else (True,):
        head = Head(model, structure, whole)
        for cut_last in (True, False):
            try:
                packed = packed_trunk(structure, words, cut_last)
                require_plain_masks(packed, words, max_length)
            except Exception as error:  # an unknown architecture may raise anything
                logger.info("%s cannot be packed: %s", type(model).__name__, error)
                continue
            if kernel is not None:
                yield Forward(structure, packed, kernel), head
            yield Forward(structure, packed), head
        yield Forward(structure, None), head


def _cases(
    model: Any, structure: Structure, kind: str, max_length: int, words: Tensor, label_ids: Tensor
) -> Iterator[Case]:
    """Yield cases with rows of random tokens, short ones and long ones."""
    n_weights = sum(weight.numel() for weight in structure.trunk.parameters()) - words.numel()
    longest = max(*LONG, min(LONGEST_ROW, int(LONGEST / max(1, n_weights))))
    vectors = words[torch.tensor([[7, 11], [13, 17]], device=words.device) % len(words)].float()
    for lengths, prompts in ((SHORT, vectors), ((*LONG, longest), vectors[:1])):
        rows = [_row(length, kind, len(words)) for length in sorted({min(length, max_length) for length in lengths})]
        yield Case(rows, prompts, _plain(model, words, rows, prompts, label_ids))


def _row(length: int, kind: str, n_words: int) -> TokenRow:
    """Make a row that begins with a prompt; a masked LM is read in the middle, a causal one at the end."""
    prompt = [prompt_id(j) for j in range(min(N_PROMPT_TOKENS, length - 1))]
    ids = stable_choice(length, n_words, length - len(prompt))
    read = length - 1 if kind == "causal" else (length + len(prompt)) // 2
    return TokenRow((*prompt, *(int(i) for i in ids)), read, False)


@torch.inference_mode()
def _plain(model: Any, words: Tensor, rows: list[TokenRow], vectors: Tensor, label_ids: Tensor) -> Tensor:
    """The scores (n, B, K) of prompts (n, T, E), one by one."""
    found = []
    for prompt in vectors:
        for row in rows:
            embeddings = words[torch.tensor([max(0, i) for i in row.ids], device=words.device)]
            embeddings[:N_PROMPT_TOKENS] = prompt.to(words.dtype)
            logits = model(inputs_embeds=embeddings[None]).logits
            found.append(logits[0, row.read, label_ids].float())
    return torch.stack(found).view(len(vectors), len(rows), -1)


def _agrees(evaluator: Evaluator, case: Case, label_ids: Tensor, kind: str) -> bool:
    """Whether an evaluator's scores are the expected ones. It is taken to agree where the expected ones are not
    numbers: of a broken model nothing can be said."""
    n_prefix = N_PROMPT_TOKENS if kind == "causal" and evaluator.shares_prefixes else 0
    try:
        rows = LocalRows(case.rows, label_ids, evaluator.head.of(label_ids), N_PROMPT_TOKENS, n_prefix)
        scores = evaluator.label_scores(case.vectors[:, None].cpu().numpy(), rows)
    except BackendError:  # memory has run out, which says nothing of the architecture
        raise
    except Exception as error:  # as in `_ways`, an unknown architecture may raise anything
        logger.info("%s: %s", type(evaluator.forward.structure.trunk).__name__, error)
        return False
    if not bool(case.expected.isfinite().all()):
        return True
    found = torch.from_numpy(scores).to(case.expected.device)
    tolerance = TOLERANCES[evaluator.words.dtype] * float(case.expected.std())
    return bool((found - case.expected).abs().max() <= tolerance + 1e-6 * float(case.expected.abs().max()))
