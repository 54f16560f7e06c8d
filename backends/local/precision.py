"""Half precision: where it is not worth its rounding, and whether it ranks candidates as full precision does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bbt.backend import Backend
from bbt.draws import stable_choice, stable_normal
from bbt.errors import BbtError
from bbt.scoring.losses import cross_entropy
from bbt.tasks.builtin import builtin_task
from bbt.tasks.data import bundled_splits
from bbt.tasks.task import labels_of
from bbt.types import Losses

AGREEMENT = 0.99
"""Least rank correlation with fp32 at which `auto` takes half precision."""
N_POPULATIONS, N_CANDIDATES, K, N_PROMPT_TOKENS = 2, 20, 16, 5


def rank_correlation(a: Losses, b: Losses) -> float:
    """Spearman's rank correlation of two (n,) without ties."""
    n, distance = len(a), a.argsort().argsort() - b.argsort().argsort()
    return float(1.0 - 6.0 * (distance**2).sum() / (n * (n**2 - 1)))


def disagreement(half: Backend, full: Backend) -> str | None:
    """Why half precision cannot be trusted to rank this model's candidates; None where it can.

    Two populations as a search begins with them (20 candidates around five random tokens, spread as in BBT's
    released code) are scored on 16-shot SST-2 (32 rows) in both precisions; the mean of their correlations decides.
    """
    try:
        found = np.mean([rank_correlation(*losses_in_both(half, full, seed)) for seed in range(N_POPULATIONS)])
    except BbtError as error:
        return f"it could not be compared with fp32: {error}"
    return None if found >= AGREEMENT else f"its losses' rank correlation with fp32 is {found:.3f}, below {AGREEMENT}"


def losses_in_both(half: Backend, full: Backend, seed: int) -> tuple[Losses, Losses]:
    """The losses (n,) of the same candidates in both precisions."""
    task = builtin_task("sst2", full.info.kind)
    examples = bundled_splits("sst2", K, 42, task.label_names).train
    ids, n_tokens = full.ordinary_ids(), N_PROMPT_TOKENS
    p0 = full.embed_ids([ids[i] for i in stable_choice(seed, len(ids), n_tokens)])
    noise = stable_normal(seed, N_CANDIDATES * p0.size).reshape(N_CANDIDATES, *p0.shape[1:])
    prompts = (p0 + full.info.embedding_std * noise).astype(np.float32)
    rows, labels = task.rows(examples, n_tokens), labels_of(examples)
    half_scores, full_scores = (b.label_scores(prompts, b.encode(rows, task.label_words)) for b in (half, full))
    return cross_entropy(half_scores, labels), cross_entropy(full_scores, labels)


class FullPrecisionHead:
    """What stands between trunk and decoder, in fp32 where it is asked for one position a row: there it costs nothing,
    and half precision's rounding in it is half of all (`minilm-mlm`)."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_output_embeddings()
        kept = {id(weight) for module in (model.base_model, decoder) for weight in module.parameters()}
        self._heads = [head for head in model.children() if head not in (model.base_model, decoder)]
        own = [weight for head in self._heads for weight in head.parameters() if id(weight) not in kept]
        self._weights = [(w, w.data, w.data.float()) for w in own if w.dtype is not torch.float32]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, it computes in fp32."""
        handles = [head.register_forward_pre_hook(_to_fp32) for head in self._heads if self._weights]
        try:
            for weight, _, full in self._weights:
                weight.data = full
            yield
        finally:
            for weight, half, _ in self._weights:
                weight.data = half
            for handle in handles:
                handle.remove()


def _to_fp32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
