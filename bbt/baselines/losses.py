"""The loss of train rows under a model that is trained: of their label words, or of their targets' tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bbt.backend import Trainable
from bbt.experiment.experiment import Experiment
from bbt.scoring.likelihood import LabelPairs
from bbt.settings import by_likelihood
from bbt.types import Labels


@dataclass(frozen=True)
class TrainingLoss:
    """The losses of B train rows. The training loss of some of them is the sum of their losses over the sum of their
    weights: the mean over rows, or over all their targets' tokens."""

    of: Callable[[Sequence[int]], Tensor]
    """A function from b rows, by number, to their losses (b,) in nats, with gradients."""
    weights: Tensor
    """(B,) what each row weighs: 1, or the number of its target's tokens."""
    n_tokens: int
    """The number of tokens of all rows together."""


def training_loss(
    experiment: Experiment,
    model: Trainable,
    n_prompt_tokens: int = 0,
    prompt: Callable[[], Tensor | None] = lambda: None,
) -> TrainingLoss:
    """Make the loss of the experiment's train rows under a model, with the soft prompt (T, H) that `prompt` gives at
    the moment, T = `n_prompt_tokens`. Rows that are cut are counted in the experiment's ledger."""
    task, train = experiment.task, experiment.split.train
    if by_likelihood(task.scored_by):
        return _likelihood_loss(experiment, model, n_prompt_tokens, prompt)
    rows = task.rows(train, n_prompt_tokens)
    if experiment.generates:
        pairs = model.encode_pairs(rows)
        experiment.ledger.count_cut(pairs)
        weights = torch.from_numpy(pairs.n_target_tokens)
        return TrainingLoss(lambda b: -model.target_log_likelihoods(pairs, b, prompt()), weights, pairs.n_tokens)
    encoded = model.encode(rows, task.label_words)
    experiment.ledger.count_cut(encoded)
    return label_loss(lambda b: model.logits(encoded, b, prompt()), experiment.train.labels, encoded.n_tokens)


def _likelihood_loss(
    experiment: Experiment, model: Trainable, n_prompt_tokens: int, prompt: Callable[[], Tensor | None]
) -> TrainingLoss:
    """Make `training_loss` of labels that are scored by their likelihood."""
    task = experiment.task
    rows = task.labelled_rows(experiment.split.train, n_prompt_tokens)
    labelled = LabelPairs(model.encode_pairs(rows), len(task.label_words))
    pairs, n_labels = labelled.pairs, labelled.n_labels
    experiment.ledger.count_cut(labelled)
    weights = 1 / torch.from_numpy(pairs.n_target_tokens) if task.scored_by == "mean_likelihood" else None

    def logits(rows: Sequence[int]) -> Tensor:
        of_rows = [row * n_labels + label for row in rows for label in range(n_labels)]
        found: Tensor = model.target_log_likelihoods(pairs, of_rows, prompt())
        if weights is not None:
            found = found * weights[of_rows].to(found)
        return found.reshape(len(rows), n_labels)

    return label_loss(logits, experiment.train.labels, pairs.n_tokens)


def label_loss(logits: Callable[[Sequence[int]], Tensor], labels: Labels, n_tokens: int) -> TrainingLoss:
    """Make the cross-entropy of rows with these labels (B,), of `n_tokens` together; `logits` gives those of b rows
    (b, K)."""
    gold = torch.from_numpy(labels)

    def losses(rows: Sequence[int]) -> Tensor:
        found = logits(rows)
        return functional.cross_entropy(found, gold[list(rows)].to(found.device), reduction="none")

    return TrainingLoss(losses, torch.ones(len(labels)), n_tokens)
