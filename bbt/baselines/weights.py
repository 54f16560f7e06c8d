"""These trainings change the model itself: some of its weights, or what is put into it. The template stays."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bbt.backend import Backend, GradientBackend, Trainable, require
from bbt.baselines.training import Subject, Training, thawed
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, Task
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
        """The logits (B, K) of the label words in the manual template."""
        encoded = self.model.encode(self.task.rows(examples, 0), self.task.label_words)
        ledger.truncated += encoded.n_truncated
        start = time.perf_counter()
        scores = self.model.scores(encoded)
        ledger.backend_seconds += time.perf_counter() - start
        ledger.examples += len(examples)
        return scores

    def save(self, folder: Path) -> None:
        """Write into a run folder what makes the model out of the backend's."""
        self.write(folder)


class WeightTraining(Training):
    """A training whose result is the tuned weights alone, in `weights.safetensors`."""

    @abstractmethod
    def thaw(self, model: Any) -> None:
        """Put what is new into a frozen `transformers` model, and mark what is trained."""

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: the thawed weights. Dropout is on while they are trained."""
        self.thaw(model.model)
        return model_subject(experiment, model, thawed(model.model), lambda folder: save_thawed(model.model, folder))

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the model with the tuned weights.

        Raises:
            RunError: there are none; BackendError: a forward-only backend.
        """
        model = require(backend, GradientBackend, type(self).__name__).trainable()
        self.thaw(model.model)
        load_thawed(model.model, folder)
        return ModelClassifier(model, task, lambda other: save_thawed(model.model, other))


def model_subject(
    experiment: Experiment, model: Trainable, parameters: Sequence[Tensor], write: Callable[[Path], None]
) -> Subject:
    """Make a subject whose parameters belong to the model."""
    task = experiment.task
    encoded = model.encode(task.rows(experiment.split.train, 0), task.label_words)
    experiment.ledger.truncated += encoded.n_truncated
    model.model.train()
    classifier = ModelClassifier(model, task, write)
    return Subject(parameters, lambda rows: model.logits(encoded, rows), lambda: classifier)


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
