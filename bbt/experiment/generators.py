"""A generator is what a method leaves behind where the answer is a text: a prompt with which the model writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from bbt.backend import Backend
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.prompts import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.scoring.targets import TargetScorer, TargetScores
from bbt.tasks import Example, GenerationTask, Template


@runtime_checkable
class Generator(Protocol):
    """A trained method, on its model, that answers with texts."""

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """Write a text for each example; what it costs is counted in the ledger."""

    def target_scores(self, examples: Sequence[Example], ledger: Ledger) -> TargetScores | None:
        """Compute how likely the examples' targets are; what it costs is counted in the ledger. None where the model
        tells no likelihoods."""

    def save(self, folder: Path) -> None:
        """Write into a run folder what a `Predictor` needs beside the run's config."""


def labelling(model: Classifier | Generator) -> Classifier:
    """Return the model as a classifier, which it is where the task has labels.

    Raises:
        RunError: it answers with texts.
    """
    if isinstance(model, Generator):
        raise RunError("what was trained answers with texts, and not with one of several labels: ask for its texts.")
    return model


def writing(model: Classifier | Generator) -> Generator:
    """Return the model as a generator, which it is where the task's answer is a text.

    Raises:
        RunError: it answers with labels.
    """
    if not isinstance(model, Generator):
        raise RunError("what was trained answers with one of several labels, and not with texts: ask for its labels.")
    return model


@dataclass(frozen=True)
class SoftPromptGenerator:
    """A soft prompt on its model; with T = 0 it is the manual prompt."""

    backend: Backend
    """The model that writes."""
    task: GenerationTask
    """The task, with its template and its decoding."""
    prompt: SoftPrompt
    """The soft prompt of T tokens."""

    @classmethod
    def loaded(cls, prompt: SoftPrompt, backend: Backend) -> "SoftPromptGenerator":
        """Make a generator of a saved prompt, with the template and the decoding that it was tuned with.

        Raises:
            PromptError: it was tuned for another model.
        """
        prompt.check_model(backend.info.name, backend.info.fingerprint)
        assert prompt.decoding is not None, "whoever loads it has looked"
        return cls(backend, GenerationTask("saved prompt", Template(prompt.template), decoding=prompt.decoding), prompt)

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """Write a text for each example under this prompt."""
        return self._scorer(examples, ledger).texts(self.prompt.batch)

    def target_scores(self, examples: Sequence[Example], ledger: Ledger) -> TargetScores | None:
        """Compute how likely the examples' targets are under this prompt, if the backend tells likelihoods."""
        return self._scorer(examples, ledger).target_scores(self.prompt.batch)

    def save(self, folder: Path) -> None:
        """Write the prompt as `prompt.safetensors`, which any `Predictor` loads by itself."""
        self.prompt.save(folder / "prompt.safetensors")

    def _scorer(self, examples: Sequence[Example], ledger: Ledger) -> TargetScorer:
        return TargetScorer(self.backend, self.task, examples, ledger)
