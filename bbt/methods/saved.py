"""What a finished run has saved is loaded again here."""

import json
from pathlib import Path

from bbt.backend import Backend
from bbt.config import read_run_config
from bbt.errors import PromptError, RunError
from bbt.experiment.classifiers import Classifier, SoftPromptClassifier, calibrated_as_saved
from bbt.experiment.generators import Generator, SoftPromptGenerator
from bbt.methods import load_method
from bbt.prompts.soft import SoftPrompt
from bbt.tasks import Task
from bbt.tasks.configured import make_task


def is_soft_prompt(path: Path) -> bool:
    """Whether `path` is, or holds, a soft prompt that loads by itself."""
    return path.is_file() or (path / "prompt.safetensors").is_file() or not (path / "config.yaml").is_file()


def load_trained(path: Path | str, backend: Backend) -> tuple[Task, Classifier | Generator]:
    """Load the classifier or the generator of a run folder or of a soft prompt's file, with its task in the wording
    that it was trained with.

    Raises:
        PromptError: it was trained on another model; RunError: the run has not finished.
    """
    path = Path(path)
    if is_soft_prompt(path):
        prompt = SoftPrompt.load(path)
        if prompt.decoding is not None:
            generator = SoftPromptGenerator.loaded(prompt, backend)
            return generator.task, generator
        loaded = SoftPromptClassifier.loaded(prompt, backend)
        return loaded.task, loaded
    config = read_run_config(path)
    _check_model(path, backend)
    task = make_task(config.task, backend.info.kind)
    trained = load_method(config).load(path, backend, task)
    return task, trained if isinstance(trained, Generator) else calibrated_as_saved(trained, path)


def load_classifier(path: Path | str, backend: Backend) -> tuple[Task, Classifier]:
    """Load what `load_trained` does, where labels are asked for.

    Raises:
        RunError: its answers are texts.
    """
    task, trained = load_trained(path, backend)
    if isinstance(trained, Generator):
        raise RunError(f"{path} answers with texts, and not with one of several labels: give a run that does.")
    return task, trained


def _check_model(path: Path, backend: Backend) -> None:
    """Refuse a model with other weights than the run's.

    Raises:
        RunError: the run has not finished; PromptError: the weights differ.
    """
    if not (path / "result.json").is_file():
        raise RunError(f"{path} has not finished: bbt resume {path}.")
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    if result["fingerprint"] != backend.info.fingerprint:
        raise PromptError(
            f"{path} was trained on {result['model']} (weights {result['fingerprint']}), not on {backend.info.name} "
            f"(weights {backend.info.fingerprint}). Load it with its own model."
        )
