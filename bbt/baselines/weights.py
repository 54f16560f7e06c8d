"""These trainings change the model itself: some of its weights, or what is put into it. The template stays."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from bbt.backend import Backend, Encoded, GradientBackend, Trainable, require
from bbt.baselines.losses import training_loss
from bbt.baselines.training import Subject, Training, thawed
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.experiment.generators import Generator
from bbt.scoring.ledger import Ledger
from bbt.scoring.likelihood import LabelPairs
from bbt.scoring.targets import TargetScores
from bbt.settings import by_likelihood
from bbt.tasks import Example, GenerationTask, Task
from bbt.types import RowScores

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class ModelClassifier:
    """A classifier that is a model of its own."""

    model: Trainable
    """The copy of the backend's model, trained."""
    task: Task
    """The template and label words that rows are put in."""
    write: Callable[[Path], None]
    """A function that saves into a folder what makes the model out of the backend's."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The scores (B, K) of the labels in the manual template: the logits of their words, or their likelihoods."""
        task, model = self.task, self.model
        if by_likelihood(task.scored_by):
            labelled = LabelPairs(model.encode_pairs(task.labelled_rows(examples, 0)), len(task.label_words))
            found = _scored(ledger, labelled, lambda: model.target_scores(labelled.pairs))
            return np.asarray(labelled.scores(found, task.scored_by)[0])
        encoded = model.encode(task.rows(examples, 0), task.label_words)
        return _scored(ledger, encoded, lambda: model.scores(encoded))

    def save(self, folder: Path) -> None:
        """Write into a run folder what makes the model out of the backend's."""
        self.write(folder)


@dataclass(frozen=True)
class ModelGenerator:
    """A generator that is a model of its own."""

    model: Trainable
    """The copy of the backend's model, trained."""
    task: GenerationTask
    """The template that rows are put in, and the decoding."""
    write: Callable[[Path], None]
    """A function that saves into a folder what makes the model out of the backend's."""

    def texts(self, examples: Sequence[Example], ledger: Ledger) -> list[str]:
        """Write a text for each example in the manual template."""
        decoding = self.task.decoding
        encoded = self.model.encode_contexts(self.task.rows(examples, 0), decoding.max_new_tokens)
        ledger.truncated += encoded.n_truncated
        with counted(ledger, encoded):
            texts = self.model.generate(encoded, decoding)
        ledger.tokens_down += sum(map(self.model.n_tokens, texts))
        ledger.bytes_down += sum(len(text.encode()) for text in texts)
        return texts

    def target_scores(self, examples: Sequence[Example], ledger: Ledger) -> TargetScores:
        """Compute how likely the examples' targets are in the manual template."""
        pairs = self.model.encode_pairs(self.task.rows(examples, 0))
        return TargetScores(_scored(ledger, pairs, lambda: self.model.target_scores(pairs)), pairs.n_target_tokens)

    def save(self, folder: Path) -> None:
        """Write into a run folder what makes the model out of the backend's."""
        self.write(folder)


def trained_model(model: Trainable, task: Task, write: Callable[[Path], None]) -> ModelClassifier | ModelGenerator:
    """Make what the task asks for of a model of its own: a generator where the answer is a text."""
    return (
        ModelGenerator(model, task, write) if isinstance(task, GenerationTask) else ModelClassifier(model, task, write)
    )


@contextmanager
def counted(ledger: Ledger, encoded: Encoded) -> Iterator[None]:
    """A context in which all of these rows go through the model; the ledger counts it."""
    start = time.perf_counter()
    yield
    ledger.backend_seconds += time.perf_counter() - start
    ledger.examples += encoded.n_examples
    ledger.tokens_up += encoded.n_tokens


def _scored(ledger: Ledger, encoded: Encoded, score: Callable[[], RowScores]) -> RowScores:
    """Have the model score all of these rows; the ledger counts it."""
    ledger.truncated += encoded.n_truncated
    with counted(ledger, encoded):
        scores = score()
    ledger.tokens_down += encoded.n_examples
    ledger.bytes_down += scores.nbytes
    return scores


class WeightTraining(Training):
    """A training whose result is the tuned weights alone, in `weights.safetensors`."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    @abstractmethod
    def thaw(self, model: Any) -> None:
        """Put what is new into a frozen `transformers` model, and mark what is trained."""

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: the thawed weights. Dropout is on while they are trained."""
        self.thaw(model.model)
        return model_subject(experiment, model, thawed(model.model), lambda folder: save_thawed(model.model, folder))

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier | Generator:
        """Load the model with the tuned weights.

        Raises:
            RunError: there are none; BackendError: a forward-only backend.
        """
        model = require(backend, GradientBackend, type(self).__name__).trainable()
        self.thaw(model.model)
        load_thawed(model.model, folder)
        return trained_model(model, task, lambda other: save_thawed(model.model, other))


def model_subject(
    experiment: Experiment, model: Trainable, parameters: Sequence[Tensor], write: Callable[[Path], None]
) -> Subject:
    """Make a subject whose parameters belong to the model."""
    loss = training_loss(experiment, model)
    model.model.train()
    trained = trained_model(model, experiment.task, write)
    return Subject(parameters, loss, lambda: trained)


def save_thawed(model: Any, folder: Path) -> None:
    """Save the trained weights by their names."""
    from safetensors.torch import save_file

    named = {name: weight.detach().contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
    save_file(named, folder / WEIGHTS)


def load_thawed(model: Any, folder: Path) -> None:
    """Put saved weights into a model that is thawed as it was when they were saved."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise RunError(f"{folder} holds no {WEIGHTS}: has its run finished? `bbt resume {folder}` goes on.")
    model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
