"""Half precision where it ranks candidates as full precision does, settled when a backend is made.

The trial is on neutral texts of its own and common pairs of words: what is asked is only whether rounding changes
which of two prompts is the better one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from backends.local.evaluation import is_out_of_memory
from backends.local.frozen import FrozenModel, Source
from bbt.backend import Row, Segment
from bbt.errors import BackendError, BbtError, LabelWordError
from bbt.losses import cross_entropy
from bbt.space import stable_choice, stable_normal
from bbt.types import Losses, Prompts

AGREEMENT = 0.99
"""Least rank correlation with fp32 at which `auto` takes half precision."""
N_POPULATIONS, N_CANDIDATES, N_PROMPT_TOKENS = 2, 20, 5

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
"""Each is scored with the first and with the second word of a pair as its label."""
PAIRS = (("good", "bad"), ("great", "terrible"), ("yes", "no"), ("new", "old"), ("first", "last"), ("he", "it"))
"""Label words; the first pair whose words are tokens of the model."""


@dataclass(frozen=True)
class Settled:
    """The model in the precision that was settled, and what does not depend on it."""

    model: FrozenModel
    embedding_std: float
    """Of the word embeddings in fp32, so that A is the same in every precision."""


def settled(source: Source, dtype: torch.dtype, on_trial: bool) -> Settled:
    """The model in `dtype`, or where that is on trial and fails it in fp32, with a warning.

    Raises:
        BackendError: it cannot be loaded, or not be scored with.
    """
    if dtype is torch.float32:
        return _in_full(FrozenModel(source, dtype))
    if not on_trial:
        half = FrozenModel(source, dtype)
        return Settled(half, _full_embedding_std(source, half))
    full = FrozenModel(source, torch.float32)
    try:
        half = FrozenModel(source, dtype)
        reason = disagreement(half, full)
    except Exception as error:  # what a model or a chip makes of a precision that it does not know
        if isinstance(error, BbtError):
            reason = f"the model refuses it: {error}"
        elif is_out_of_memory(error):
            reason = "there is no memory to compare it with fp32"
        else:
            reason = f"the model refuses it: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}"
    if reason is None:
        return Settled(half, full.embedding_std)
    name = str(dtype).removeprefix("torch.")
    warnings.warn(f"precision auto: fp32 instead of {name}, {reason}.", stacklevel=3)
    return _in_full(full)


def disagreement(half: FrozenModel, full: FrozenModel) -> str | None:
    """Why half precision cannot be trusted to rank this model's candidates; None where it can.

    Two populations as a search begins with them (20 candidates around five random tokens, spread as in BBT's released
    code) are scored on `TEXTS` in both precisions; the mean of their rank correlations decides.
    """
    try:
        rows, words = _trial(full)
        found = np.mean([rank_correlation(*losses_in_both(half, full, rows, words, s)) for s in range(N_POPULATIONS)])
    except BbtError as error:
        return f"it could not be compared with fp32: {error}"
    return None if found >= AGREEMENT else f"its losses' rank correlation with fp32 is {found:.3f}, below {AGREEMENT}"


def rank_correlation(a: Losses, b: Losses) -> float:
    """Spearman's rank correlation of two (n,) without ties."""
    n, distance = len(a), a.argsort().argsort() - b.argsort().argsort()
    return float(1.0 - 6.0 * (distance**2).sum() / (n * (n**2 - 1)))


def losses_in_both(
    half: FrozenModel, full: FrozenModel, rows: list[Row], words: tuple[str, str], seed: int
) -> tuple[Losses, Losses]:
    """The losses (n,) of the same candidates in both precisions; labels take turns."""
    prompts, labels = _population(full, seed), np.arange(len(rows)) % 2
    half_scores, full_scores = (m.evaluator.label_scores(prompts[:, None], m.encode(rows, words)) for m in (half, full))
    return cross_entropy(half_scores, labels), cross_entropy(full_scores, labels)


def _population(model: FrozenModel, seed: int) -> Prompts:
    """(n, T, E) around the embeddings of random tokens, one embedding's spread away."""
    words, n_tokens = model.words, N_PROMPT_TOKENS
    ids = torch.tensor(stable_choice(seed, len(words), n_tokens), device=words.device)
    p0 = words[ids].float().cpu().numpy()[None]
    noise = stable_normal(seed, N_CANDIDATES * p0.size).reshape(N_CANDIDATES, *p0.shape[1:])
    return np.asarray(p0 + model.embedding_std * noise, dtype=np.float32)


def _trial(model: FrozenModel) -> tuple[list[Row], tuple[str, str]]:
    """The rows, and a pair of label words.

    Raises:
        BackendError: no pair of words could be found.
    """
    for words in _pairs(model):
        rows: list[Row] = [
            (
                Segment("prompt", n_tokens=N_PROMPT_TOKENS),
                Segment("literal", " . "),
                Segment("text", text),
                Segment("literal", " . It was "),
                Segment("mask"),
            )
            for text in TEXTS
        ]
        try:
            model.row_tokenizer.label_ids(words, rows[0])
        except LabelWordError:
            continue
        return rows, words
    raise BackendError("no pair of words is a pair of its tokens.")


def _pairs(model: FrozenModel) -> Iterator[tuple[str, str]]:
    """Common words, then the texts of random tokens."""
    yield from PAIRS
    for seed in range(100):
        first, second = (model.row_tokenizer.text([int(i)]).strip() for i in stable_choice(seed, len(model.words), 2))
        if first and second:
            yield first, second


def _in_full(model: FrozenModel) -> Settled:
    return Settled(model, model.embedding_std)


def _full_embedding_std(source: Source, half: FrozenModel) -> float:
    """Of the fp32 weights, which are loaded for it where the stored ones may be finer than the half ones."""
    from backends.local.loading import load
    from backends.local.structure import word_embeddings

    try:
        model, _, _ = load(source.name, source.kind, torch.device("cpu"), torch.float32, source.revision)
    except (MemoryError, RuntimeError):
        return half.embedding_std
    return float(word_embeddings(model).double().std().item())
