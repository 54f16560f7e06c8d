"""Prompt selection chooses one of several manual prompts, by the model's perplexity or by dev."""

import math
import time
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from bbt.backend import LikelihoodBackend, require
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.base import SelectingMethod
from bbt.runs.observer import Progress
from bbt.tasks import Task, Template


class PromptSelection(SelectingMethod):
    """The choice of one template among several, all with the task's label words.

    perplexity: the template of lowest mean perplexity over the training rows is chosen, prompt and text together and
    without a label (Gonen et al. 2022, arXiv 2212.04037). A masked LM has no perplexity: pseudo-perplexity, from each
    token masked in turn, takes its place (Salazar et al. 2020, arXiv 1910.14659). The training labels are not used.
    dev: the template of best dev metric or dev loss is chosen, as `selection.by` says.
    """

    templates: tuple[str, ...] = Field(min_length=2)
    """The templates to choose from."""
    by: Literal["perplexity", "dev"] = "perplexity"
    """What chooses: `perplexity` or `dev`."""

    def train(self, experiment: Experiment) -> Trained:
        """Score every template and choose one.

        Raises:
            ConfigError: a template that cannot be used; BackendError: no likelihoods to be had.
        """
        e, best = experiment, None
        tasks = [replace(e.task, template=Template(source)) for source in self.templates]
        e.observer.started(len(tasks), "template")
        if self.by == "perplexity":
            perplexities = [perplexity(e, task) for task in tasks]
            tasks = [tasks[int(np.argmin(perplexities))]]
        for i, task in enumerate(tasks):
            classifier = e.soft_prompt(e.no_prompt, None, task)
            verdict = e.judge(classifier, task.template.source)
            if best is None or verdict.better_than(best.verdict, self.selection.by):
                queries = e.ledger.train_queries
                best = Trained(classifier, task.template.source, verdict, queries, 0, {"manual": e.manual})
            e.observer.progressed(Progress(i + 1, verdict.loss, best.verdict.metric))
        assert best is not None
        return best


def perplexity(experiment: Experiment, task: Task) -> float:
    """The mean perplexity of the training rows in the task's manual template, counted and logged.

    Every forward pass of a masked LM is counted: one training row of N tokens is N examples, and a train query is as
    many examples as there are training rows.
    """
    e, backend = experiment, require(experiment.backend, LikelihoodBackend)
    start = time.perf_counter()
    encoded = backend.encode(task.rows(e.split.train, 0), task.label_words)
    rows = backend.token_log_likelihoods(encoded)
    seconds = time.perf_counter() - start
    value = float(np.mean([np.exp(-row.astype(np.float64).mean()) for row in rows]))
    passes = sum(len(row) for row in rows) if backend.info.kind == "masked" else len(rows)
    e.ledger.seconds += seconds
    e.ledger.backend_seconds += seconds
    e.ledger.count_cut(encoded)
    e.ledger.examples += passes
    e.ledger.train_queries += math.ceil(passes / len(rows))
    facts = {"template": task.template.source, "perplexity": value}
    e.log.append({"event": "perplexity", **facts, "ledger": e.ledger.snapshot()})
    return value
