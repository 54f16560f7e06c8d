"""These trainings tune a soft prompt: the model stays frozen, and the result is a prompt that any backend can load."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from bbt.backend import Trainable
from bbt.baselines.losses import training_loss
from bbt.baselines.training import Subject
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.experiment.generators import Generator
from bbt.runs.estimate import PlannedQueries


def soft_prompt_subject(
    experiment: Experiment, model: Trainable, parameters: Sequence[Tensor], prompt: Callable[[], Tensor], n_tokens: int
) -> Subject:
    """Make a subject whose parameters make the soft `prompt` (T, H), T = `n_tokens`."""

    def trained() -> Classifier | Generator:
        return experiment.prompted(prompt().detach().float().cpu().numpy().copy())

    loss = training_loss(experiment, model, n_tokens, prompt)
    return Subject(parameters, loss, trained, {"untuned": trained()})


def soft_plan(plan: PlannedQueries, n_tokens: int, n_screened: int, references: bool) -> PlannedQueries:
    """Make the plan of a training of a soft prompt of T = `n_tokens` out of any training's: its start is screened among
    so many, and tested beside it."""
    return replace(plan, train=n_screened, test=1 + int(references), n_prompt_tokens=n_tokens)
