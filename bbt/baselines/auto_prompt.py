"""AutoPrompt (Shin et al. 2020, arXiv 2010.15980): a prompt of real tokens, found one by one with the gradient's help.

The gradient at one token's embedding says, to first order, how the loss changes when another token takes its place.
The most promising are scored on the train rows, and the best stays if it lowers the loss.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bbt.backend import GradientBackend, Trainable, require
from bbt.baselines.selection import Selection
from bbt.baselines.training import batches
from bbt.experiment.classifiers import SoftPromptClassifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.base import SelectingMethod
from bbt.runs.observer import Progress
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective
from bbt.settings import PromptLength
from bbt.spaces.initial import random_ids


class AutoPrompt(SelectingMethod):
    """AutoPrompt's search. It begins with random tokens, where the paper's begins with mask tokens; a step tries
    several tokens at one random place."""

    prompt: PromptLength = PromptLength()
    """The prompt's length."""
    steps: int = Field(50, ge=1)
    """The number of steps."""
    n_candidates: int = Field(10, ge=1)
    """How many tokens a step tries, a query each."""
    batch_size: int = Field(16, ge=1)
    """The train rows of which a step takes the gradient."""
    dev_every: int = Field(10, ge=1)
    """Steps between two judgements by dev."""

    def train(self, experiment: Experiment) -> Trained:
        """Search, and let dev choose among the states that it has judged.

        Raises:
            BackendError: a forward-only backend.
        """
        model = require(experiment.backend, GradientBackend, experiment.method).trainable()
        with torch.random.fork_rng():
            torch.manual_seed(experiment.seed)
            return TokenReplacement(self, experiment, model).run()


class TokenReplacement:
    """One search, which holds the tokens at the moment and their training loss."""

    def __init__(self, settings: AutoPrompt, experiment: Experiment, model: Trainable) -> None:
        self._settings, self._experiment, self._model = settings, experiment, model
        e, n_tokens = experiment, settings.prompt.n_prompt_tokens
        self._objective = Objective(e.train, cross_entropy, e.ledger)
        self._encoded = model.encode(e.task.rows(e.split.train, n_tokens), e.task.label_words)
        self._labels = torch.from_numpy(e.train.labels)
        self._batches = batches(len(self._labels), settings.batch_size)
        self._words: Tensor = model.model.get_input_embeddings().weight
        self._allowed = torch.tensor(e.backend.ordinary_ids(), device=self._words.device)
        self._ids = random_ids(e.backend, n_tokens, e.seed)
        self._loss = float(self._losses([self._ids])[0])

    def run(self) -> Trained:
        """Take all steps."""
        e, s = self._experiment, self._settings
        untuned = self._classifier(self._ids)
        selection = Selection[list[int]](e, s.selection.by)
        e.observer.started(s.steps, "step")
        selection.check(0, untuned, lambda: self._ids)
        for step in range(1, s.steps + 1):
            self._step()
            if step % s.dev_every == 0 or step == s.steps:
                selection.check(step, self._classifier(self._ids), lambda: self._ids)
            e.observer.progressed(Progress(step, self._loss, selection.best.verdict.metric))
        best = selection.best
        references = {"manual": e.manual, "untuned": untuned}
        classifier = self._classifier(best.state)
        return Trained(classifier, best.who, best.verdict, best.train_queries, len(best.state), references)

    def _step(self) -> None:
        place = int(torch.randint(len(self._ids), ()))
        tokens = self._promising(self._gradient(next(self._batches))[place])
        candidates = [[*self._ids[:place], token, *self._ids[place + 1 :]] for token in tokens]
        losses = self._losses(candidates)
        best = int(losses.argmin())
        if losses[best] < self._loss:
            self._ids, self._loss = candidates[best], float(losses[best])

    def _promising(self, gradient: Tensor) -> list[int]:
        """The tokens whose embeddings point the steepest way down a gradient (H,)."""
        change = self._words[self._allowed] @ gradient
        chosen = change.topk(min(self._settings.n_candidates, len(change)), largest=False).indices
        return [int(token) for token in self._allowed[chosen]]

    def _gradient(self, rows: list[int]) -> Tensor:
        """The gradient (T, H) of the loss on these rows at the tokens' embeddings."""
        ledger, start = self._experiment.ledger, time.perf_counter()
        prompt = self._words[self._ids].detach().requires_grad_()
        logits = self._model.logits(self._encoded, rows, prompt)
        loss = functional.cross_entropy(logits, self._labels[rows].to(logits.device))
        (gradient,) = torch.autograd.grad(loss, prompt)
        ledger.examples += len(rows)
        ledger.backend_seconds += time.perf_counter() - start
        ledger.seconds += time.perf_counter() - start
        return gradient

    def _losses(self, candidates: Sequence[list[int]]) -> np.ndarray:
        """The training losses (n,) of candidates, at n queries."""
        e, start = self._experiment, time.perf_counter()
        losses = self._objective.losses(np.concatenate([e.backend.embed_ids(ids) for ids in candidates]))
        e.ledger.seconds += time.perf_counter() - start
        return losses

    def _classifier(self, ids: list[int]) -> SoftPromptClassifier:
        text = self._model.text(ids)
        return self._experiment.soft_prompt(self._experiment.backend.embed_ids(ids)[0], None, text=text, token_ids=ids)
