"""What a method leaves behind where the answer is a text: a prompt with which the model writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from bbt.backend import Backend
from bbt.experiment.classifiers import Classifier
from bbt.prompts import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorers import scorer_of
from bbt.scoring.targets import TargetScorer
from bbt.tasks import Example, GenerationTask, Template


@runtime_checkable
class Generator(Protocol):
    """A trained method, on its model, that answers with texts."""

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """A text for each example; what it costs is counted in the ledger."""

    def perplexity(self, examples: Sequence[Example], ledger: Ledger) -> float:
        """Of the examples' targets: the exponential of the mean negative log-likelihood of their tokens."""

    def save(self, folder: Path) -> None:
        """Write into a run folder what a `Predictor` needs."""


def labelling(model: Classifier | Generator) -> Classifier:
    """What was made of a task with labels."""
    assert not isinstance(model, Generator), "whether a method takes a task is looked at before it is trained"
    return model


def writing(model: Classifier | Generator) -> Generator:
    """What was made of a task whose answer is a text."""
    assert isinstance(model, Generator), "as in `labelling`"
    return model


@dataclass(frozen=True)
class SoftPromptGenerator:
    """A soft prompt on its model; T = 0 is the manual prompt."""

    backend: Backend
    task: GenerationTask
    prompt: SoftPrompt

    @classmethod
    def loaded(cls, prompt: SoftPrompt, backend: Backend) -> "SoftPromptGenerator":
        """A saved prompt with the template and the decoding it was tuned with.

        Raises:
            PromptError: it was tuned for another model.
        """
        prompt.check_model(backend.info.name, backend.info.fingerprint)
        assert prompt.decoding is not None, "whoever loads it has looked"
        return cls(backend, GenerationTask("saved prompt", Template(prompt.template), decoding=prompt.decoding), prompt)

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """What the model writes under this prompt."""
        return self._scorer(examples, ledger).texts(self.prompt.batch)

    def perplexity(self, examples: Sequence[Example], ledger: Ledger) -> float:
        """Of the targets under this prompt."""
        scorer = self._scorer(examples, ledger)
        total = scorer.log_likelihoods(self.prompt.batch).sum(dtype=np.float64)
        with np.errstate(over="ignore"):
            return float(np.exp(-total / scorer.pairs(self.prompt.batch.shape[1]).n_target_tokens.sum()))

    def save(self, folder: Path) -> None:
        """As `prompt.safetensors`, which any `Predictor` loads by itself."""
        self.prompt.save(folder / "prompt.safetensors")

    def _scorer(self, examples: Sequence[Example], ledger: Ledger) -> TargetScorer:
        scorer = scorer_of(self.backend, self.task, examples, ledger)
        assert isinstance(scorer, TargetScorer), "it is for generation tasks"
        return scorer
