"""These trainings are PEFT's methods: PEFT's config makes the adapter, and its own files hold the result."""

import shutil
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from bbt.backend import Backend, GradientBackend, Trainable, require
from bbt.baselines.training import Subject, Training, thawed
from bbt.baselines.weights import model_subject, trained_model
from bbt.errors import BackendError, RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.experiment.generators import Generator
from bbt.tasks import Task

ADAPTER = "adapter"


class PeftTraining(Training):
    """A training whose result is the folder `adapter`, as PEFT's `save_pretrained` writes it."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    @abstractmethod
    def peft_config(self, model: Any) -> Any:
        """The method as a `PeftConfig` for this `transformers` model.

        Raises:
            BackendError: PEFT has it not for this architecture.
        """

    def attach(self, model: Trainable, peft_model: Any) -> None:
        """Let the forward pass be that of `peft_model`; layers that PEFT has replaced in place need nothing."""

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: the adapter's weights."""
        with peft_imported():
            from peft import get_peft_model

            try:
                peft_model = get_peft_model(model.model, self.peft_config(model.model))
            except ValueError as error:
                raise BackendError(f"PEFT cannot do this with {type(model.model).__name__}: {error}") from error
        self.attach(model, peft_model)
        return model_subject(experiment, model, thawed(peft_model), lambda folder: save_adapter(peft_model, folder))

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier | Generator:
        """Load the model with the saved adapter.

        Raises:
            RunError: there is none; BackendError: a forward-only backend.
        """
        model = require(backend, GradientBackend, type(self).__name__).trainable()
        if not (folder / ADAPTER).is_dir():
            raise RunError(f"{folder} holds no {ADAPTER}: has its run finished? `bbt resume {folder}` goes on.")
        with peft_imported():
            from peft import PeftModel

            peft_model = PeftModel.from_pretrained(model.model, str(folder / ADAPTER))
        self.attach(model, peft_model)
        # Copied, because a prefix whose network was left behind cannot be saved by PEFT again.
        return trained_model(model, task, lambda other: copy_adapter(folder, other))


def save_adapter(peft_model: Any, folder: Path) -> None:
    """Save the adapter as PEFT does, but without embeddings, none of which is trained."""
    peft_model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)


def copy_adapter(source: Path, target: Path) -> None:
    """Copy an adapter from one run folder to another."""
    shutil.copytree(source / ADAPTER, target / ADAPTER, dirs_exist_ok=True)


@contextmanager
def peft_imported() -> Iterator[None]:
    """A context in which PEFT may be imported and used; it asks transformers for a name that is going away.

    Raises:
        BackendError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    except ModuleNotFoundError as error:
        raise BackendError(f"{error}: this method needs PEFT, pip install 'bbt-prompt[baselines]'.") from error
