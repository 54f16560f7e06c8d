"""These trainings tune a soft prompt: the model stays frozen, and the result is a prompt that any backend can load."""

from collections.abc import Callable, Sequence

from torch import Tensor

from bbt.backend import Trainable
from bbt.baselines.training import Subject
from bbt.experiment.classifiers import SoftPromptClassifier
from bbt.experiment.experiment import Experiment


def soft_prompt_subject(
    experiment: Experiment, model: Trainable, parameters: Sequence[Tensor], prompt: Callable[[], Tensor], n_tokens: int
) -> Subject:
    """Make a subject whose parameters make the soft `prompt` (T, H), T = `n_tokens`."""
    task, train = experiment.task, experiment.split.train
    encoded = model.encode(task.rows(train, n_tokens), task.label_words)
    experiment.ledger.truncated += encoded.n_truncated

    def logits(rows: Sequence[int]) -> Tensor:
        found: Tensor = model.logits(encoded, rows, prompt())
        return found

    def classifier() -> SoftPromptClassifier:
        return experiment.soft_prompt(prompt().detach().float().cpu().numpy().copy(), None)

    return Subject(parameters, logits, classifier, {"untuned": classifier()})
