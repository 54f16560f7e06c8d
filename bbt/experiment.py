"""One run from config to result: task, split, prompt space, tuner, test."""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from bbt.backend import Backend
from bbt.config import Config
from bbt.errors import BackendError
from bbt.initial import initial_prompts
from bbt.losses import cross_entropy, hinge, negative_metric
from bbt.objective import Judge, Ledger, Objective, Scorer
from bbt.optimizers import Settings, make_optimizer
from bbt.problem import make_split, make_task
from bbt.prompts import SoftPrompt
from bbt.records import EventLog, decode_losses, encode_losses, environment
from bbt.space import PromptSpace, normal_scale, random_projection
from bbt.tasks import TASKS, Example, Split
from bbt.tuner import Candidate, Progress, Schedule, Tuner
from bbt.types import Labels, Losses, Prompts, Scores


class Experiment:
    """Everything of one run, put together from its config and a backend; the log may hold a run to resume."""

    def __init__(self, config: Config, backend: Backend, log: EventLog | None = None) -> None:
        self.config, self.backend = config, backend
        self.log = log or EventLog()
        self.ledger = Ledger()
        self.task = make_task(config.task, backend.info.kind)
        self.split = make_split(config.data, self.task, config.seed)
        self._begin()
        scorer = partial(Scorer, backend, self.task)
        train, dev = scorer(self.split.train, self.ledger), scorer(self.split.dev, self.ledger)
        self.objective = Objective(train, self._loss(), self.ledger)
        self.judge = Judge(dev, self.task, self.ledger)
        self.space = self._space()
        for encoded in (train.encoded(self.space.n_prompt_tokens), dev.encoded(self.space.n_prompt_tokens)):
            if encoded.n_truncated:
                _warn(f"{encoded.n_truncated} of {encoded.n_examples} rows were longer than the model: text cut.")

    def tuner(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> Tuner:
        """The search loop over this experiment's space."""
        c = self.config
        settings = Settings(
            self.space.intrinsic_dim,
            seed=c.seed,
            budget=c.budget.queries,
            **c.optimizer.model_dump(exclude={"name"}),
        )
        budgets = (c.budget.queries, *(event["queries"] for event in self.log.of("extend")))
        schedule = Schedule(budgets, c.budget.dev_every, c.budget.patience, **c.selection.model_dump())
        optimizer = make_optimizer(c.optimizer.name, settings)
        return Tuner(optimizer, self.space, self.objective, self.judge, self.ledger, self.log, schedule, on_progress)

    def result(self, best: Candidate) -> dict[str, Any]:
        """The outcome: manual, untuned and tuned prompt on the test set, and what it cost.

        Raises:
            BackendError: no prompt had a finite loss.
        """
        if not math.isfinite(best.verdict.loss):
            raise BackendError(
                f"every prompt's scores were NaN or infinite in {self.backend.info.precision}: is the model damaged, "
                "or the precision too low for it? Try model.options.precision=fp32."
            )
        costs = self.ledger.snapshot()
        test = Scorer(self.backend, self.task, self.split.test, Ledger())
        prompts = {"manual": self.space.no_prompt, "untuned": self.space.p0, "tuned": best.prompt[None]}
        info = self.backend.info
        return {
            "task": self.task.name,
            "model": info.name,
            "optimizer": self.config.optimizer.name,
            "seed": self.config.seed,
            "test_examples": len(self.split.test),
            "test_truncated": test.encoded(self.space.n_prompt_tokens).n_truncated,
            "test": {name: self.task.evaluate(test.labels, predict(test, prompt)) for name, prompt in prompts.items()},
            "selected": {"who": best.who, **asdict(best.verdict), "train_queries": best.train_queries},
            "cost": costs,
            "peak_memory_mb": _peak_memory_mb(),
            "device": info.device,
            "precision": info.precision,
        }

    def soft_prompt(self, best: Candidate) -> SoftPrompt:
        """The best candidate with its provenance, ready to be saved."""
        info = self.backend.info
        anchored = self.config.prompt.placement == "layernorm"
        return SoftPrompt(
            best.prompt,
            info.name,
            info.fingerprint,
            self.task.template.source,
            self.task.label_words,
            self.task.label_names,
            self.space.p0[0] if anchored and len(best.prompt) else None,
            {
                "task": self.task.name,
                "metric": self.task.metrics[0],
                "dev": asdict(best.verdict),
                "who": best.who,
                "train_queries": best.train_queries,
                "seed": self.config.seed,
                "backend": self.config.model.backend,
                "options": self.config.model.options,
                **environment(),
            },
        )

    def _begin(self) -> None:
        """The first event names model and rows, so that a changed one is noticed when the run is resumed."""
        facts = {"model": self.backend.info.fingerprint, "rows": _fingerprint(self.split)}
        if not self.log.recall("start", **facts):
            self.log.append({"event": "start", **facts, **environment(), "info": asdict(self.backend.info)})

    def _loss(self) -> Callable[[Scores, Labels], Losses]:
        objective = self.config.objective
        default = TASKS[self.task.name].loss if self.task.name in TASKS else "cross_entropy"
        name = objective.loss or default
        if name == "hinge":
            return partial(hinge, margin=objective.margin)
        if name == "negative_metric":
            return partial(negative_metric, metric=self.task.metric)
        return cross_entropy

    def _space(self) -> PromptSpace:
        """p0 (screened where asked for) and A."""
        c, d = self.config.prompt, self.config.prompt.intrinsic_dim
        self.backend.anchor(None)  # an earlier experiment may have left one
        p0 = self._screened(initial_prompts(c, self.backend, self.task, self.config.seed))
        if c.placement == "layernorm":
            self.backend.anchor(p0)
        if c.scale == "paper":
            scale = c.alpha / math.sqrt(d)
        else:
            scale = normal_scale(self.backend.info.embedding_std, d, self.config.optimizer.sigma0, c.alpha)
        return PromptSpace(p0, random_projection(self.config.seed, p0.size, d, c.projection, scale))

    def _screened(self, prompts: Prompts) -> Prompts:
        """The initial prompt of lowest training loss (1, T, H)."""
        if len(prompts) == 1:
            return prompts
        recorded = self.log.recall("screen")
        if recorded:
            self.ledger.restore(recorded["ledger"])
            losses = decode_losses(recorded["losses"])
        else:
            start = time.perf_counter()
            losses = self.objective.losses(prompts)
            self.ledger.seconds += time.perf_counter() - start
            self.log.append({"event": "screen", "losses": encode_losses(losses), "ledger": self.ledger.snapshot()})
        best = int(losses.argmin())
        return prompts[best : best + 1]


def predict(scorer: Scorer, prompt: Prompts) -> Labels:
    """(B,) label indices under one prompt (1, T, H)."""
    return np.asarray(scorer.scores(prompt)[0].argmax(axis=-1))


def load_prompt(prompt: SoftPrompt, backend: Backend) -> Prompts:
    """(1, T, H) on the backend it was tuned for, its anchor set.

    Raises:
        PromptError: another model.
    """
    prompt.check_model(backend.info.name, backend.info.fingerprint)
    backend.anchor(None if prompt.anchor is None else prompt.anchor[None])
    return prompt.batch


def _fingerprint(split: Split) -> str:
    rows: Sequence[Example] = [*split.train, *split.dev]
    return hashlib.sha256(repr([(e.text, e.text_pair, e.label) for e in rows]).encode()).hexdigest()[:16]


def _peak_memory_mb() -> float:
    """This process's peak resident memory in MB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
