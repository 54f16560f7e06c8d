"""A classifier is what a method leaves behind: it scores rows that it has never seen, and can be saved."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bbt.backend import Backend
from bbt.files import write_atomically
from bbt.prompts import HardPrompt, SoftPrompt
from bbt.scoring.calibration import with_biases
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorer import Scorer
from bbt.scoring.scorers import scorer_of
from bbt.tasks import Example, Task, Template
from bbt.types import RowScores

BIASES = "biases.json"


class Classifier(Protocol):
    """The protocol of a trained method on its model."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The logits or log-probabilities (B, K) of the labels; what they cost is counted in the ledger."""

    def save(self, folder: Path) -> None:
        """Write into a run folder what `Method.load` needs beside the run's config."""


@dataclass(frozen=True)
class SoftPromptClassifier:
    """A classifier that is a soft prompt on its model; T = 0 is the manual prompt."""

    backend: Backend
    """The model that scores."""
    task: Task
    """The template and label words that rows are put in."""
    prompt: SoftPrompt
    """The prompt, of vectors (T, H) or (L, T, H)."""

    @classmethod
    def loaded(cls, prompt: SoftPrompt, backend: Backend) -> "SoftPromptClassifier":
        """Make a saved prompt a classifier, with the template and label words that it was tuned with.

        Raises:
            PromptError: it was tuned for another model.
        """
        prompt.check_model(backend.info.name, backend.info.fingerprint)
        names, words, by = prompt.label_names, prompt.label_words, prompt.scored_by
        task = Task("saved prompt", Template(prompt.template), names, words, scored_by=by, words=prompt.words)
        return cls(backend, task, prompt)

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the examples under this prompt."""
        anchor = None if self.prompt.anchor is None else self.prompt.anchor[None]
        scores = scorer_of(self.backend, self.task, examples, ledger, anchor).scores(self.prompt.batch)[0]
        return with_biases(self.prompt.label_scores(np.asarray(scores)), self.prompt.biases)

    def save(self, folder: Path) -> None:
        """Write the prompt as `prompt.safetensors`, which any `Predictor` loads by itself."""
        self.prompt.save(folder / "prompt.safetensors")


@dataclass(frozen=True)
class HardPromptClassifier:
    """A classifier that is a hard prompt on its model."""

    backend: Backend
    """The model that scores."""
    task: Task
    """The template and label words that rows are put in."""
    prompt: HardPrompt
    """The prompt, of T tokens."""

    @classmethod
    def loaded(cls, prompt: HardPrompt, backend: Backend) -> "HardPromptClassifier":
        """Make a saved prompt a classifier, with the template and label words that it was tuned with."""
        task = Task("saved prompt", Template(prompt.template), prompt.label_names, prompt.label_words)
        return cls(backend, task, prompt)

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the examples under this prompt."""
        ids = np.array([self.prompt.token_ids], dtype=np.int64)
        scores = Scorer(self.backend, self.task, examples, ledger).scores(ids)[0]
        return with_biases(np.asarray(scores), self.prompt.biases)

    def save(self, folder: Path) -> None:
        """Write the prompt as `prompt.json`."""
        self.prompt.save(folder)


@dataclass(frozen=True)
class CalibratedClassifier:
    """Another classifier with class biases added to its scores."""

    inner: Classifier
    """The classifier that scores."""
    biases: tuple[float, ...]
    """(K,) class biases that are added to its scores."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the examples with the biases added."""
        return with_biases(self.inner.scores(examples, ledger), self.biases)

    def save(self, folder: Path) -> None:
        """Save the inner classifier, and the biases as `biases.json`."""
        self.inner.save(folder)
        write_atomically(folder / BIASES, json.dumps(self.biases) + "\n")


def calibrated(classifier: Classifier, biases: tuple[float, ...] | None) -> Classifier:
    """The classifier with these class biases, which a prompt carries itself; with None it stays as it is."""
    if biases is None:
        return classifier
    if isinstance(classifier, SoftPromptClassifier):
        return replace(classifier, prompt=replace(classifier.prompt, biases=biases))
    if isinstance(classifier, HardPromptClassifier):
        return replace(classifier, prompt=replace(classifier.prompt, biases=biases))
    return CalibratedClassifier(classifier, biases)


def calibrated_as_saved(classifier: Classifier, folder: Path) -> Classifier:
    """The classifier with the biases that `CalibratedClassifier` saved beside it, if there are any."""
    file = folder / BIASES
    return calibrated(classifier, tuple(json.loads(file.read_text(encoding="utf-8")))) if file.is_file() else classifier
