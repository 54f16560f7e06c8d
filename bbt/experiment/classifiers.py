"""What a method leaves behind: a classifier that scores rows it has never seen, and can be saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bbt.backend import Backend
from bbt.prompts import HardPrompt, SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task, Template
from bbt.types import RowScores


class Classifier(Protocol):
    """A trained method, on its model."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """(B, K) logits or log-probabilities of the labels; what it costs is counted in the ledger."""

    def save(self, folder: Path) -> None:
        """Write into a run folder what `Method.load` needs beside the run's config."""


@dataclass(frozen=True)
class SoftPromptClassifier:
    """A soft prompt on its model; T = 0 is the manual prompt."""

    backend: Backend
    task: Task
    prompt: SoftPrompt

    @classmethod
    def loaded(cls, prompt: SoftPrompt, backend: Backend) -> "SoftPromptClassifier":
        """A saved prompt with the template and label words it was tuned with.

        Raises:
            PromptError: it was tuned for another model.
        """
        prompt.check_model(backend.info.name, backend.info.fingerprint)
        task = Task("saved prompt", Template(prompt.template), prompt.label_names, prompt.label_words)
        return cls(backend, task, prompt)

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """(B, K) scores under this prompt."""
        anchor = None if self.prompt.anchor is None else self.prompt.anchor[None]
        return np.asarray(Scorer(self.backend, self.task, examples, ledger, anchor).scores(self.prompt.batch)[0])

    def save(self, folder: Path) -> None:
        """As `prompt.safetensors`, which any `Predictor` loads by itself."""
        self.prompt.save(folder / "prompt.safetensors")


@dataclass(frozen=True)
class HardPromptClassifier:
    """A hard prompt on its model."""

    backend: Backend
    task: Task
    prompt: HardPrompt

    @classmethod
    def loaded(cls, prompt: HardPrompt, backend: Backend) -> "HardPromptClassifier":
        """A saved prompt with the template and label words it was tuned with."""
        task = Task("saved prompt", Template(prompt.template), prompt.label_names, prompt.label_words)
        return cls(backend, task, prompt)

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """(B, K) scores under this prompt."""
        ids = np.array([self.prompt.token_ids], dtype=np.int64)
        return np.asarray(Scorer(self.backend, self.task, examples, ledger).scores(ids)[0])

    def save(self, folder: Path) -> None:
        """As `prompt.json`."""
        self.prompt.save(folder)
