"""`Predictor`: what a run has trained, put to use on new texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import load_backend
from bbt.backend import Backend
from bbt.config import read_run_config
from bbt.methods.saved import is_soft_prompt, load_classifier
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import log_softmax, predicted
from bbt.settings import ModelConfig
from bbt.tasks import Example, Task
from bbt.tasks.task import labels_of


def open_backend(config: ModelConfig) -> Backend:
    """The backend that a config names."""
    return load_backend(config.backend, model=config.name, **config.options)


class Predictor:
    """A trained method on its model, ready for new texts.

    `path` is a run folder or a soft prompt's file. The backend and its options are those of the run that made it;
    `options` override them one by one.
    """

    def __init__(self, path: Path | str, options: Mapping[str, Any] | None = None) -> None:
        path = Path(path)
        if is_soft_prompt(path):
            prompt = SoftPrompt.load(path)
            origin = prompt.provenance
            merged = {**origin.get("options", {}), **(options or {})}
            self.backend = load_backend(origin.get("backend", "local"), model=prompt.model, **merged)
        else:
            model = read_run_config(path).model
            merged = {**model.options, **(options or {})}
            self.backend = open_backend(model.model_copy(update={"options": merged}))
        self.task, self.classifier = load_classifier(path, self.backend)

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """For each text the label and the probabilities over the label words."""
        pairs = text_pairs or [""] * len(texts)
        examples = [Example(text, 0, pair) for text, pair in zip(texts, pairs, strict=True)]
        probabilities = np.exp(log_softmax(self.classifier.scores(examples, Ledger())))
        names = self.task.label_names
        return [
            {
                "label": names[int(row.argmax())],
                "probabilities": {n: float(p) for n, p in zip(names, row, strict=True)},
            }
            for row in probabilities
        ]

    def evaluate(self, task: Task, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics on examples, with the own template and label words.

        Raises:
            ConfigError: the task has another number of labels.
        """
        own = Task(task.name, self.task.template, task.label_names, self.task.label_words, task.metrics)
        return own.evaluate(labels_of(examples), predicted(self.classifier.scores(examples, Ledger())))
