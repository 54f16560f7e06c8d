"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): the prompt's vectors themselves are trained."""

import torch
from pydantic import Field

from bbt.backend import Trainable
from bbt.baselines.soft import soft_prompt_subject
from bbt.baselines.training import Subject, Training
from bbt.experiment.experiment import Experiment
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective
from bbt.settings import InitialPromptConfig
from bbt.spaces.initial import initial_prompts


class PromptTuning(Training):
    """Length and start of the prompt are the config's section `prompt`, as for Black-Box Tuning."""

    prompt: InitialPromptConfig = InitialPromptConfig()
    learning_rate: float = Field(1e-2, gt=0)
    steps: int = Field(100, gt=0)

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """The vectors p (T, H), at p0."""
        e = experiment
        candidates = initial_prompts(self.prompt, e.backend, e.task, e.seed)
        best = 0
        if len(candidates) > 1:
            best = int(Objective(e.train, cross_entropy, e.ledger).losses(candidates).argmin())
        prompt = torch.from_numpy(candidates[best].copy()).to(model.model.device).requires_grad_()
        return soft_prompt_subject(e, model, [prompt], lambda: prompt, len(prompt))
