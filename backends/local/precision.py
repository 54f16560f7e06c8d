"""Half precision is taken where it ranks candidates as full precision does. That is settled when a backend is made.

The trial is on neutral texts of its own and pairs of common words: what is asked is only whether rounding changes
which of two prompts is the better one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from backends.local.evaluation import is_out_of_memory
from backends.local.frozen import FrozenModel, Source
from backends.local.loading import load
from backends.local.shapes import PREFIX
from backends.local.structure import word_embeddings
from bbt.backend import Row, Segment
from bbt.draws import stable_choice, stable_normal
from bbt.errors import BackendError, BbtError, LabelWordError
from bbt.scoring.losses import cross_entropy
from bbt.types import Losses, Prompts

AGREEMENT = 0.98
"""The least mean rank correlation with fp32 at which `auto` takes half precision. On 32 rows of SST-2, where 0.99 was
asked for, the bundled models have 0.996 to 0.998; on these fewer rows 0.993: 1 - r is two to three times as large."""
N_CANDIDATES, N_PROMPT_TOKENS = 20, 5

TEXTS = (
    "the room was bright and the table by the window was set for two",
    "it took us an hour to find the house, and nobody was at home",
    "she read the letter twice before she put it back",
    "the train left late, so we missed the boat",
    "a long walk along the river",
    "prices rose again last month after a quiet summer",
    "he plays the piano better than anyone in the village",
    "the soup was cold and the bread was hard",
)
"""The first and the second word of a pair are their labels in turn."""
PAIRS = (("good", "bad"), ("great", "terrible"), ("yes", "no"), ("new", "old"), ("first", "last"), ("he", "it"))
N_PAIRS = 4
"""Pairs of label words, all read off the same hidden states: the first whose words are tokens of the model."""


@dataclass(frozen=True)
class Settled:
    """The model in the precision that was settled, and what does not depend on it."""

    model: FrozenModel
    """The model in the precision that was settled."""
    embedding_std: float
    """The standard deviation of the word embeddings in fp32, so that A is the same in every precision."""


def settled(source: Source, dtype: torch.dtype, on_trial: bool) -> Settled:
    """Load the model in `dtype`; where that is on trial and fails, load it in fp32, with a warning.

    Raises:
        BackendError: it cannot be loaded, or not be scored with.
    """
    if dtype is torch.float32:
        return _in_full(FrozenModel(source, dtype))
    if not on_trial or source.device_map is not None:
        half = FrozenModel(source, dtype)
        if on_trial:
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"precision auto: {name}, which was not compared with fp32: a model that is spread by device_map is "
                "loaded once. Name the precision that you mean.",
                stacklevel=3,
            )
        return Settled(half, _full_embedding_std(source, half))
    full = FrozenModel(source, torch.float32)
    try:
        half = FrozenModel(source, dtype)
        reason = disagreement(half, full)
    except Exception as error:  # a model or chip that lacks the precision may raise anything
        reason = f"the model refuses it: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        if is_out_of_memory(error):
            reason = "there is no memory to compare it with fp32"
    if reason is None:
        return Settled(half, full.embedding_std)
    name = str(dtype).removeprefix("torch.")
    warnings.warn(f"precision auto: fp32 instead of {name}, {reason}.", stacklevel=3)
    return _in_full(full)


def disagreement(half: FrozenModel, full: FrozenModel) -> str | None:
    """The reason why half precision cannot be trusted to rank this model's candidates; None where it can.

    A population as a search begins with it (20 candidates around five random tokens, spread as in BBT's released code)
    is scored on `TEXTS` in both precisions; the mean over pairs of label words of the losses' rank correlation decides.
    """
    try:
        found = np.mean([rank_correlation(*losses) for losses in losses_in_both(half, full)])
    except BbtError as error:
        return f"it could not be compared with fp32: {error}"
    return None if found >= AGREEMENT else f"its losses' rank correlation with fp32 is {found:.3f}, below {AGREEMENT}"


def rank_correlation(a: Losses, b: Losses) -> float:
    """Spearman's rank correlation of two sets of losses (n,) without ties."""
    n, distance = len(a), a.argsort().argsort() - b.argsort().argsort()
    return float(1.0 - 6.0 * (distance**2).sum() / (n * (n**2 - 1)))


def losses_in_both(half: FrozenModel, full: FrozenModel) -> Iterator[tuple[Losses, Losses]]:
    """Yield, for each pair of label words, the losses (n,) of the same candidates in both precisions."""
    prompts, labels, words = _population(full), np.arange(len(TEXTS)) % 2, _label_words(full)
    encoded = [(model.evaluator, model.encode([_row(text) for text in TEXTS], words)) for model in (half, full)]
    scores = [evaluator.label_scores(prompts[:, None], rows) for evaluator, rows in encoded]
    for first in range(0, len(words), 2):
        losses = [cross_entropy(found[:, :, first : first + 2], labels) for found in scores]
        yield losses[0], losses[1]


def _population(model: FrozenModel) -> Prompts:
    """Prompts (n, T, E) around the embeddings of random tokens, one embedding's spread away."""
    words, n_tokens = model.words, N_PROMPT_TOKENS
    ids = torch.tensor(stable_choice(0, len(words), n_tokens), device=words.device)
    p0 = words[ids].float().cpu().numpy()[None]
    noise = stable_normal(0, N_CANDIDATES * p0.size).reshape(N_CANDIDATES, *p0.shape[1:])
    return np.asarray(p0 + model.embedding_std * noise, dtype=np.float32)


def _row(text: str) -> Row:
    """A text in a template that every kind of model takes."""
    return (
        Segment("prompt", n_tokens=N_PROMPT_TOKENS),
        Segment("literal", " . "),
        Segment("text", text),
        Segment("literal", " . It was "),
        Segment("mask"),
    )


def _label_words(model: FrozenModel) -> list[str]:
    """Words for the trial, pair after pair: each is one token, and all are different.

    Raises:
        BackendError: not even random tokens make a pair.
    """
    chosen: list[str] = []
    for pair in _pairs(model):
        try:
            model.row_tokenizer.label_ids([*chosen, *pair], _row(TEXTS[0]))
        except LabelWordError:
            continue
        chosen += pair
        if len(chosen) == 2 * N_PAIRS:
            return chosen
    if not chosen:
        raise BackendError("no two words are tokens of it.")
    return chosen


def _pairs(model: FrozenModel) -> Iterator[tuple[str, str]]:
    """Yield pairs of common words, then pairs of the texts of random tokens."""
    yield from PAIRS
    for seed in range(100):
        first, second = (model.row_tokenizer.text([int(i)]).strip() for i in stable_choice(seed, len(model.words), 2))
        if first and second:
            yield first, second


def _in_full(model: FrozenModel) -> Settled:
    return Settled(model, model.embedding_std)


def _full_embedding_std(source: Source, half: FrozenModel) -> float:
    """The standard deviation of the fp32 word embeddings. The weights are loaded for it where the stored ones may be
    finer than the half ones; of a model that is spread over devices, which may not fit into memory, the half ones
    count."""
    if source.device_map is not None:
        return half.embedding_std
    try:
        # Random weights of billions are drawn in a second on a GPU, and in minutes on a CPU.
        device = source.device if source.name.startswith(PREFIX) else torch.device("cpu")
        model = load(source.name, source.kind, device, torch.float32, source.revision).model
    except (MemoryError, RuntimeError):
        return half.embedding_std
    return float(word_embeddings(model).double().std().item())
