"""A `Predictor` puts what a run has trained to use on new texts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends import load_backend
from bbt.backend import Backend
from bbt.config import Config, read_run_config
from bbt.errors import BackendError, ConfigError, DataError
from bbt.experiment.answers import Answers
from bbt.experiment.classifiers import Classifier
from bbt.experiment.generators import Generator, labelling, writing
from bbt.methods.saved import is_soft_prompt, load_trained
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger, warn_of_cut_rows
from bbt.settings import ModelConfig
from bbt.tasks import Example, GenerationTask, Task
from bbt.tasks.examples import checked_text
from bbt.tasks.task import labels_of
from bbt.types import RowScores


def open_backend(config: ModelConfig) -> Backend:
    """Open the backend that a config names.

    Raises:
        ConfigError: no such backend, or options that it does not take.
    """
    return _opened(config.backend, config.name, config.options)


def _opened(backend: str, model: str, options: Mapping[str, Any]) -> Backend:
    if "model" in options:
        raise ConfigError(
            f"the backend option model={options['model']!r} is none: the model is named by model.name in a config, and "
            "a saved prompt belongs to its own."
        )
    return load_backend(backend, model=model, **options)


def sound_scores(classifier: Classifier, examples: Sequence[Example]) -> RowScores:
    """The scores (B, K) of examples, with the check that all of them are numbers.

    Raises:
        BackendError: the model's scores of a row are NaN.
    """
    ledger = Ledger()
    scores = classifier.scores(examples, ledger)
    warn_of_cut_rows(ledger.truncated, len(examples))
    broken = np.isnan(scores).any(axis=1)
    if broken.any():
        raise BackendError(
            f"the model's scores of {broken.sum()} of {len(examples)} texts are NaN, the first of "
            f"{examples[int(broken.argmax())].text[:40]!r}. Try --option precision=fp32."
        )
    return scores


class Predictor:
    """A trained method on its model, ready for new texts.

    `path` is a run folder or a soft prompt's file. The backend and its options are those of the run that made it;
    `options` override them one by one. `config` is the run's, None for a prompt's file.
    """

    def __init__(self, path: Path | str, options: Mapping[str, Any] | None = None) -> None:
        path = Path(path)
        self.config: Config | None = read_run_config(path) if (path / "config.yaml").is_file() else None
        if is_soft_prompt(path):
            prompt = SoftPrompt.load(path)
            origin = prompt.provenance
            merged = {**origin.get("options", {}), **(options or {})}
            self.backend = _opened(origin.get("backend", "local"), prompt.model, merged)
        else:
            assert self.config is not None, "what is no soft prompt's folder holds a config.yaml"
            model = self.config.model
            self.backend = _opened(model.backend, model.name, {**model.options, **(options or {})})
        self.task, self.classifier = load_trained(path, self.backend)

    def predict(self, texts: Iterable[str], text_pairs: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The label and the probabilities over the label words for each text. The label is None where all probabilities
        are equal, as where a sampled answer names no label. Where the task's answer is a text, that is the `output`.

        Raises:
            DataError: one string instead of several, a text that is none, or second texts that are missing, too many
                or not asked for.
        """
        examples = [Example(text, 0, pair) for text, pair in zip(*self._checked(texts, text_pairs), strict=True)]
        if not examples:
            return []
        if isinstance(self.classifier, Generator):
            return [{"output": text} for text in _texts_of(self.classifier, examples)]
        return self.answers(examples).named(self.task.label_names)

    def predict_proba(self, texts: Iterable[str], text_pairs: Iterable[str] | None = None) -> NDArray[np.float64]:
        """The probabilities (B, K) of the labels, in the order of `task.label_names`.

        Raises:
            DataError: as `predict`.
        """
        examples = [Example(text, 0, pair) for text, pair in zip(*self._checked(texts, text_pairs), strict=True)]
        return self.answers(examples).probabilities if examples else np.zeros((0, len(self.task.label_names)))

    def answers(self, examples: Sequence[Example]) -> Answers:
        """The labels and probabilities of examples, whose own labels are not looked at.

        Raises:
            BackendError: the model's scores of a row are NaN.
        """
        return Answers.of(sound_scores(labelling(self.classifier), examples))

    def evaluate(self, task: Task, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics on examples, in the predictor's own template and label words.

        Raises:
            ConfigError: the task has another number of labels.
        """
        own = self.worded(task)
        return own.evaluate(labels_of(examples), self.answers(examples).labels)

    @property
    def generates(self) -> bool:
        """Whether it answers with texts."""
        return isinstance(self.classifier, Generator)

    def written(self, task: GenerationTask, examples: Sequence[Example]) -> tuple[dict[str, float], list[str]]:
        """The task's metrics on examples with targets, their perplexity among them if the model tells it, and what is
        generated."""
        generator = writing(self.classifier)
        texts = _texts_of(generator, examples)
        scores = generator.target_scores(examples, Ledger())
        told = {} if scores is None else {"perplexity": scores.perplexity}
        return {**task.evaluate_texts(texts, examples), **told}, texts

    def worded(self, task: Task) -> Task:
        """The task in the predictor's own template and label words.

        Raises:
            ConfigError: the task has another number of labels.
        """
        own = self.task
        return Task(task.name, own.template, task.label_names, own.label_words, task.metrics, scored_by=own.scored_by)

    def _checked(self, texts: Iterable[str], pairs: Iterable[str] | None) -> tuple[list[str], list[str]]:
        firsts = _texts(texts, "texts")
        takes_pair = self.task.template.takes_pair
        if pairs is None and takes_pair:
            raise DataError("this task reads two texts a row: give text_pairs, too.")
        seconds = [""] * len(firsts) if pairs is None else _texts(pairs, "text_pairs")
        if any(seconds) and not takes_pair:
            raise DataError("this task reads one text a row: leave text_pairs out.")
        if len(seconds) != len(firsts):
            raise DataError(f"{len(firsts)} texts, but {len(seconds)} text_pairs: give one a text.")
        return firsts, seconds


def _texts_of(generator: Generator, examples: Sequence[Example]) -> list[str]:
    """Have a generator write a text for each example, and tell the user of examples that were cut."""
    ledger = Ledger()
    texts = generator.texts(examples, ledger)
    warn_of_cut_rows(ledger.truncated, len(examples))
    return texts


def _texts(values: Iterable[str], what: str) -> list[str]:
    """Check that the values are several sound texts, and return them as a list."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(f"{what} must be several texts, got one {type(values).__name__}: put it in a list, [text].")
    return [checked_text(value, f"{what}[{i}]") for i, value in enumerate(values)]
