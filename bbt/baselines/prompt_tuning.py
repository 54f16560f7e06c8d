"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691) trains the prompt's vectors themselves."""

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field

from bbt.backend import Trainable
from bbt.baselines.soft import soft_plan, soft_prompt_subject
from bbt.baselines.training import Subject, Training
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.many_words import read_trained
from bbt.runs.estimate import PlannedQueries
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective, TrainingLoss
from bbt.scoring.targets import TargetObjective, target_rows
from bbt.settings import InitialPromptConfig
from bbt.spaces.initial import initial_prompts, n_screened


class PromptTuning(Training):
    """Prompt tuning. The prompt's length and start are the config's section `prompt`, as for Black-Box Tuning."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    prompt: InitialPromptConfig = InitialPromptConfig()
    """The prompt's length and its start p0."""
    learning_rate: float = Field(1e-2, gt=0)
    """The optimizer's step size."""
    steps: int = Field(100, gt=0)
    """The number of gradient steps."""
    n_words: int = Field(0, ge=0)
    """How many words, the label words among them, labels may be read from when the prompt has been tuned (0: the label
    words alone), as by Black-Box Tuning. See `bbt.scoring.readout`."""

    def train(self, experiment: Experiment) -> Trained:
        """Train, keep the state that dev judges best, and read its labels from many words where these pay."""
        trained = super().train(experiment)
        return read_trained(experiment, trained, self.n_words) if self.n_words else trained

    def plan(self, references: bool) -> PlannedQueries:
        """The queries and steps of the training, and those of the test; see `soft_plan`. Reading words takes three dev
        queries at most, of which one judges the tuned prompt."""
        plan = soft_plan(super().plan(references), self.prompt.n_prompt_tokens, n_screened(self.prompt), references)
        return replace(plan, dev=plan.dev + int(self.n_words > 0), n_words=self.n_words)

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: the vectors p (T, H), which begin at p0."""
        e = experiment
        candidates = initial_prompts(self.prompt, e.backend, e.task, e.split.train, e.seed)
        best = 0
        if len(candidates) > 1:
            best = int(likelihood_objective(e).losses(candidates).argmin())
        prompt = torch.from_numpy(candidates[best].copy()).to(model.model.device).requires_grad_()
        return soft_prompt_subject(e, model, [prompt], lambda: prompt, len(prompt))


def likelihood_objective(experiment: Experiment) -> TrainingLoss:
    """Make the objective of the forward pass alone whose gradient the training follows."""
    e = experiment
    if e.generates:
        return TargetObjective(target_rows(e.train), "cross_entropy", e.ledger)
    return Objective(e.train, cross_entropy, e.ledger)
