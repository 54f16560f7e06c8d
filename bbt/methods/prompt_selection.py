"""Prompt selection: of several manual prompts one is chosen, by the model's perplexity or by dev."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from bbt.backend import require_likelihoods
from bbt.classifier import SoftPromptClassifier
from bbt.experiment import Experiment, Trained
from bbt.methods.base import Method
from bbt.observer import Progress
from bbt.tasks import Task, Template
from bbt.types import Prompts


class PromptSelection(Method):
    """Chooses among `templates` (all with the task's label words).

    perplexity: the lowest mean perplexity over the training rows, prompt and text together and without a label
    (Gonen et al. 2022, arXiv 2212.04037, section 3). A masked LM has none: pseudo-perplexity, from each token masked
    in turn, takes its place (Salazar et al. 2020, arXiv 1910.14659). The training labels are not used.
    dev: the dev metric, or dev loss, by `selection.by`.
    """

    templates: tuple[str, ...] = Field(min_length=2)
    by: Literal["perplexity", "dev"] = "perplexity"

    def train(self, experiment: Experiment) -> Trained:
        """Score every template.

        Raises:
            ConfigError: a template that cannot be used; BackendError: no likelihoods to be had.
        """
        e = experiment
        tasks = [replace(e.task, template=Template(source)) for source in self.templates]
        e.observer.started(len(tasks), "template")
        classifiers = [e.manual_of(task) for task in tasks]
