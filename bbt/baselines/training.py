"""The one training loop: gradient steps on the train rows, a judgement on dev now and then, the best kept."""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bbt.backend import Trainable
from bbt.baselines.gradients import require_gradients
from bbt.classifier import Classifier
from bbt.experiment import Experiment, Trained
from bbt.methods.base import Method
from bbt.objective import Verdict
from bbt.observer import Progress


@dataclass(frozen=True)
class Subject:
    """What is trained: `parameters`, which change the `logits` of the train rows named; `classifier` is what they
    amount to at the moment. `references` as in `Trained`."""

    parameters: Sequence[Tensor]
    logits: Callable[[Sequence[int]], Tensor]
    classifier: Callable[[], Classifier]
    references: dict[str, Classifier] = field(default_factory=dict)


class Training(Method):
    """Settings of every training. The loss is cross-entropy over the label words, the learning rate constant.

    A step takes `gradient_accumulation` batches of `batch_size` rows; dev judges every `dev_every` steps and at
    the end, and by `selection.by` the best state is kept.
    """

    learning_rate: float = Field(gt=0)
    steps: int = Field(gt=0)
    batch_size: int = Field(16, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    dev_every: int = Field(10, ge=1)

    @abstractmethod
    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is to be trained, at its start."""

    def train(self, experiment: Experiment) -> Trained:
        """Train and keep what dev judges best.

        Raises:
            BackendError: a forward-only backend.
        """
        model = require_gradients(experiment.backend, experiment.config.method.name).trainable()
        with torch.random.fork_rng():
            torch.manual_seed(experiment.config.seed)
            return Loop(self, self.subject(experiment, model), experiment).run()

    def make_optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """AdamW, or Adafactor at a constant rate without parameter scaling (Lester et al. 2021, section 4)."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        from transformers import Adafactor

        adafactor: Any = Adafactor  # not typed
        fixed = {"scale_parameter": False, "relative_step": False}
        return cast(
            torch.optim.Optimizer,
            adafactor(parameters, self.learning_rate, weight_decay=self.weight_decay, **fixed),
        )


@dataclass
class Loop:
    """One training of one subject."""

    settings: Training
    subject: Subject
    experiment: Experiment
    _best: tuple[int, Verdict, int, list[Tensor]] | None = field(default=None, init=False)
    _n_rows: int = field(default=0, init=False)

    def run(self) -> Trained:
        """All steps, unless the loss stops being a number; then back to the best state."""
        e, s = self.experiment, self.settings
        self._optimizer = s.make_optimizer(self.subject.parameters)
        self._batches = batches(len(e.train.labels), s.batch_size)
        self._labels = torch.from_numpy(e.train.labels)
        e.observer.started(s.steps, "step")
        self._check(0)
        for step in range(1, s.steps + 1):
            loss = self._step()
            if not math.isfinite(loss):
                break
            if step % s.dev_every == 0 or step == s.steps:
                self._check(step)
            e.observer.progressed(Progress(step, loss, self._best[1].metric if self._best else None))
        return self._trained()

    def _step(self) -> float:
        """One step of the optimizer; returns the training loss before it."""
        ledger, share = self.experiment.ledger, self.settings.gradient_accumulation
        start = time.perf_counter()
        total = 0.0
        for _ in range(share):
            rows = next(self._batches)
            logits = self.subject.logits(rows)
            loss = functional.cross_entropy(logits, self._labels[rows].to(logits.device)) / share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            self._n_rows += len(rows)
            ledger.examples += len(rows)
        differentiated = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.subject.parameters, self.settings.max_gradient_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        ledger.backend_seconds += differentiated - start
        ledger.seconds += differentiated - start
        ledger.optimizer_seconds += time.perf_counter() - differentiated
        ledger.train_queries = self._n_rows // len(self._labels)
        return total

    def _check(self, step: int) -> None:
        """Judge on dev; keep the state if it is the best so far."""
        e = self.experiment
        verdict = e.judge(self.subject.classifier(), f"step {step}")
        if self._best is None or verdict.better_than(self._best[1], e.config.selection.by):
            state = [parameter.detach().clone() for parameter in self.subject.parameters]
            self._best = (step, verdict, e.ledger.train_queries, state)

    @torch.no_grad()
    def _trained(self) -> Trained:
        assert self._best is not None
        step, verdict, queries, state = self._best
        for parameter, value in zip(self.subject.parameters, state, strict=True):
            parameter.copy_(value)
        n_parameters = sum(parameter.numel() for parameter in self.subject.parameters)
        references = {"manual": self.experiment.manual, **self.subject.references}
        return Trained(self.subject.classifier(), f"step {step}", verdict, queries, n_parameters, references)


def batches(n_rows: int, batch_size: int) -> Iterator[list[int]]:
    """Row numbers, all of them in a new order each epoch, without end; the order is PyTorch's global generator's."""
    while True:
        order = torch.randperm(n_rows).tolist()
        yield from (order[i : i + batch_size] for i in range(0, n_rows, batch_size))


def thawed(model: Any) -> list[Tensor]:
    """The parameters of a module that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
