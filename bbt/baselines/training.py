"""This training loop is what all baselines share: gradient steps on the train rows, a judgement on dev now and then,
the best state kept."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from bbt.backend import GradientBackend, Trainable, require
from bbt.baselines.losses import TrainingLoss
from bbt.baselines.selection import Best, Selection
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator
from bbt.methods.base import SelectingMethod
from bbt.runs.estimate import GradientSteps, PlannedQueries
from bbt.runs.observer import Progress


@dataclass(frozen=True)
class Subject:
    """What a training trains, and what it becomes."""

    parameters: Sequence[Tensor]
    """The tensors that are trained."""
    loss: TrainingLoss
    """The loss of the train rows, differentiable in the parameters."""
    trained: Callable[[], Classifier | Generator]
    """A function that makes a classifier or a generator of the parameters as they are at the moment."""
    references: dict[str, Classifier | Generator] = field(default_factory=dict)
    """What the outcome is to be tested beside, by name."""


class Training(SelectingMethod):
    """The settings of every training. The loss is cross-entropy over the label words, or of the targets' tokens where
    the answer is a text. A step takes `gradient_accumulation` batches of `batch_size` rows, as if they were one; dev
    judges every `dev_every` steps and at the end, and by `selection.by` the best state is kept."""

    learning_rate: float = Field(gt=0)
    """The optimizer's step size."""
    steps: int = Field(gt=0)
    """The number of gradient steps."""
    batch_size: int = Field(16, ge=1)
    """The train rows of a batch."""
    gradient_accumulation: int = Field(1, ge=1)
    """The batches of a step."""
    schedule: Literal["constant", "linear"] = "constant"
    """How the learning rate goes after the warm-up: it stays, or falls in a line to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """The steps over which the learning rate rises in a line to `learning_rate`."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """The optimizer: see `make_optimizer`."""
    weight_decay: float = Field(0.0, ge=0)
    """The optimizer's weight decay."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """The norm to which a longer gradient is cut."""
    dev_every: int = Field(10, ge=1)
    """Steps between two judgements by dev."""

    def plan(self, references: bool) -> PlannedQueries:
        """The gradient steps, and a dev query at the start and at each check; the best state is tested."""
        checks = 1 + math.ceil(self.steps / self.dev_every)
        steps = GradientSteps(self.steps, self.batch_size, self.gradient_accumulation)
        return PlannedQueries(0, checks, 0, 1, int(references), judged_references=False, training=steps)

    @abstractmethod
    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """The subject to be trained, at its start."""

    def train(self, experiment: Experiment) -> Trained:
        """Train, and keep the state that dev judges best.

        Raises:
            BackendError: a forward-only backend.
        """
        model = require(experiment.backend, GradientBackend, experiment.method).trainable()
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            return Loop(self, self.subject(experiment, model), experiment).run()

    def rate(self, step: int) -> float:
        """The share of the learning rate that the step after so many steps takes."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup_steps))

    def make_optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make AdamW, or Adafactor at a constant rate without parameter scaling (Lester et al. 2021, section 3)."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        from transformers import Adafactor

        adafactor: Any = Adafactor  # transformers does not type it
        fixed = {"scale_parameter": False, "relative_step": False}
        return cast(
            torch.optim.Optimizer,
            adafactor(parameters, self.learning_rate, weight_decay=self.weight_decay, **fixed),
        )


class Loop:
    """One training of one subject."""

    def __init__(self, settings: Training, subject: Subject, experiment: Experiment) -> None:
        self._settings, self._subject, self._experiment = settings, subject, experiment
        self._optimizer = settings.make_optimizer(subject.parameters)
        self._rates = torch.optim.lr_scheduler.LambdaLR(self._optimizer, settings.rate)
        self._train_rows = len(subject.loss.weights)
        self._batches = batches(self._train_rows, settings.batch_size)
        self._n_rows = 0
        self._losses: list[float] = []
        self._screened = experiment.ledger.train_queries  # what the subject's start has cost

    def run(self) -> Trained:
        """Take all steps, or stop where the loss is no longer a number; then go back to the best state."""
        s, observer = self._settings, self._experiment.observer
        selection = Selection[list[Tensor]](self._experiment, s.selection.by)
        observer.started(s.steps, "step")
        selection.check(0, self._subject.trained(), self._state)
        for step in range(1, s.steps + 1):
            loss = self._step()
            if not math.isfinite(loss):
                break
            self._losses.append(loss)
            if step % s.dev_every == 0 or step == s.steps:
                self._log_losses()
                selection.check(step, self._subject.trained(), self._state)
            observer.progressed(Progress(step, loss, selection.best.verdict.metric))
        return self._trained(selection.best)

    def _log_losses(self) -> None:
        """Log the losses of the steps since the last time, each before its step."""
        e = self._experiment
        e.log.append({"event": "steps", "losses": self._losses, "ledger": e.ledger.snapshot()})
        self._losses = []

    def _step(self) -> float:
        """Take one step of the optimizer, and return the training loss before it."""
        ledger, start = self._experiment.ledger, time.perf_counter()
        parts = [next(self._batches) for _ in range(self._settings.gradient_accumulation)]
        total = sum(float(self._subject.loss.weights[rows].sum()) for rows in parts)
        loss = sum(self._backward(rows, total) for rows in parts)
        differentiated = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self._subject.parameters, self._settings.max_gradient_norm)
        self._optimizer.step()
        self._rates.step()
        self._optimizer.zero_grad()
        ledger.backend_seconds += differentiated - start
        ledger.seconds += differentiated - start
        ledger.optimizer_seconds += time.perf_counter() - differentiated
        return loss

    def _backward(self, rows: list[int], total: float) -> float:
        """Add one batch's share to the gradient, and return its share of the loss; `total` is what the rows of the
        whole step weigh."""
        loss = self._subject.loss.of(rows).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]
        self._n_rows += len(rows)
        ledger = self._experiment.ledger
        ledger.examples += len(rows)
        ledger.tokens_up += round(len(rows) * self._subject.loss.n_tokens / self._train_rows)
        ledger.train_queries = self._screened + self._n_rows // self._train_rows
        return loss.item()

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._subject.parameters]

    @torch.no_grad()
    def _trained(self, best: Best[list[Tensor]]) -> Trained:
        for parameter, value in zip(self._subject.parameters, best.state, strict=True):
            parameter.copy_(value)
        n_parameters = sum(parameter.numel() for parameter in self._subject.parameters)
        e = self._experiment
        references = {"manual": e.prompted(e.no_prompt), **self._subject.references}
        return Trained(self._subject.trained(), best.who, best.verdict, best.train_queries, n_parameters, references)


def batches(n_rows: int, batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of a batch's rows, all rows in a new order each epoch, without end; the order is that of
    PyTorch's global generator."""
    while True:
        order = torch.randperm(n_rows).tolist()
        yield from (order[i : i + batch_size] for i in range(0, n_rows, batch_size))


def thawed(model: Any) -> list[Tensor]:
    """The parameters of a module that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
