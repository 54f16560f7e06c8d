"""A workload says what is measured: rows, a model, and one generation of candidates after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from backends.bench.plain import PlainLoop, PlainScores
from backends.local import LocalBackend
from backends.local.rows import LocalRows
from bbt.draws import stable_choice
from bbt.errors import ConfigError
from bbt.optimizers import Settings, make_optimizer
from bbt.scoring.losses import cross_entropy, log_softmax
from bbt.spaces.soft import PromptSpace, normal_scale, random_projection
from bbt.tasks import Example, Task
from bbt.tasks.builtin import builtin_task
from bbt.tasks.configured import test_examples
from bbt.tasks.data import bundled_splits, first_k_then_k
from bbt.tasks.task import labels_of
from bbt.types import Latents, Losses, Prompts, Scores

N_TURNS = 4
"""How many turns of a search over deep prompts are measured, from the lowest layers to the highest."""


@dataclass(frozen=True)
class Workload:
    """The work of a generation; the defaults are BBT's (arXiv 2201.03514, Table 1)."""

    model: str = "minilm-mlm"
    """A bundled name, a folder, a hub name, or `random:SHAPE`."""
    task: str = "sst2"
    """The task that gives template and label words, and its 16-shot training rows where it is bundled. Of one whose
    answer is a text, the likelihoods of the answers are measured."""
    data: Path | None = None
    """A file of the task's rows, of which 16 a class are taken, or the first 32 (none: the bundled rows, or made
    ones)."""
    lengths: tuple[int, ...] = ()
    """Rows of so many tokens of text are made instead (empty: the task's rows are taken)."""
    n_rows: int | None = None
    """The rows are repeated or cut to so many (none: as they are)."""
    population_size: int = 20
    """n, the candidates of a generation."""
    n_prompt_tokens: int = 50
    """The number of prompt tokens T."""
    intrinsic_dim: int = 500
    """The intrinsic dimension d."""
    optimizer: str = "cma-separable"
    """The name of the optimizer."""
    deep: bool = False
    """Whether every layer has a prompt, and the candidates of a turn differ in one layer's (BBTv2, arXiv
    2205.11200)."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda or mps."""
    precision: str = "auto"
    """What the model computes in: auto, fp32, bf16 or fp16."""
    token_budget: int | None = None
    """The most tokens of one micro-batch (none: the backend's default for the device)."""

    def examples(self, task: Task) -> list[Example]:
        """The rows that are scored.

        Raises:
            DataError: the task is not bundled, or the file does not hold 32 rows a class.
        """
        if self.lengths:
            rows = [Example(" ".join([task.label_words[0]] * n), i % 2) for i, n in enumerate(self.lengths)]
        elif self.data:
            rows = first_k_then_k(test_examples(task, self.data), 16, task.label_names)[0]
        else:
            rows = bundled_splits(task.name, 16, 42, task.label_names).train
        n_rows = self.n_rows or max(len(rows), 32 if self.lengths else 0)
        return [rows[i % len(rows)] for i in range(n_rows)]


class Generations:
    """A workload of label scores on its backend, which yields one turn of candidates after another."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.backend = workload, local_backend(workload)
        self.encoded = self._encoded()
        if workload.deep and not hasattr(self.backend, "deep_label_scores"):
            raise ConfigError("this backend takes no deep prompts.")
        settings = Settings(workload.intrinsic_dim, workload.population_size)
        self.optimizer = make_optimizer(workload.optimizer, settings)

    def _encoded(self) -> Any:
        """The rows, tokenised."""
        task = builtin_task(self.workload.task, self.backend.info.kind)
        examples = self.workload.examples(task)
        self.labels = labels_of(examples)
        return self.backend.encode(task.rows(examples, self.workload.n_prompt_tokens), task.label_words)

    @property
    def row_lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return list(self._rows.lengths)

    @property
    def trunk(self) -> nn.Module:
        """The module that an evaluation calls before the head, once for each micro-batch."""
        return self.backend.trunk

    @property
    def head(self) -> nn.Module:
        """The module that makes the scores of hidden states."""
        return self._rows.head

    @property
    def _rows(self) -> LocalRows:
        assert isinstance(self.encoded, LocalRows), "label words are scored on such rows"
        return self.encoded

    def plain_loop(self, model: Any) -> PlainScores:
        """The plain loop over a model of transformers, on the same rows."""
        return PlainLoop(model, self._rows.rows, self._rows.label_ids.tolist())

    def normalised(self, scores: Scores) -> Scores:
        """The scores (n, B, K) without what they leave free, so that those of two models can be compared."""
        return log_softmax(scores)

    @cached_property
    def space(self) -> PromptSpace:
        """The space: p0 of random vocabulary tokens, and A as in BBT's released code."""
        w, ids = self.workload, self.backend.ordinary_ids()
        p0 = self.backend.embed_ids([ids[i] for i in stable_choice(0, len(ids), w.n_prompt_tokens)])
        scale = normal_scale(self.backend.info.embedding_std, w.intrinsic_dim, 1.0)
        return PromptSpace(p0, random_projection(0, p0.size, w.intrinsic_dim, "normal", scale))

    @property
    def layers(self) -> Sequence[int]:
        """The layers whose turns are measured: 0 alone, or with deep prompts the middles of equal parts of them."""
        n_layers = self.backend.info.n_layers
        if not self.workload.deep:
            return (0,)
        return sorted({int((i + 0.5) * n_layers / N_TURNS) for i in range(N_TURNS)})

    def prompts(self, latents: Latents, layer: int, seed: int = 0) -> Prompts:
        """The prompts of a turn's candidates; deep ones all share what a `seed` puts before the other layers."""
        prompts = self.space.prompts(latents)
        if not self.workload.deep:
            return prompts
        shape = (self.backend.info.n_layers, *prompts.shape[1:])
        scale = self.backend.info.embedding_std
        others = scale * np.random.default_rng(seed).standard_normal(shape, np.float32)
        others[0] += self.space.p0[0]
        deep = np.repeat(others[None], len(prompts), axis=0)
        deep[:, layer] = prompts if layer == 0 else prompts - self.space.p0
        return deep

    @property
    def sends_latents(self) -> bool:
        """Whether z travels to the model, as in a search on a GPU: p0 + A z is then a part of scoring."""
        return not self.workload.deep and self.backend.info.device.startswith("cuda")

    def scores(self, prompts: Prompts) -> Scores:
        """The scores (n, B, K) of a turn's prompts."""
        score = getattr(self.backend, "deep_label_scores" if self.workload.deep else "label_scores")
        return np.asarray(score(prompts, self.encoded))

    def losses(self, scores: Scores) -> Losses:
        """The losses (n,) of a turn's scores (n, B, K)."""
        return cross_entropy(scores, self.labels)


def local_backend(workload: Workload) -> LocalBackend:
    """The backend that a workload asks for."""
    return LocalBackend(
        workload.model, device=workload.device, precision=workload.precision, token_budget=workload.token_budget
    )
