"""Black-Box Tuning (BBT, arXiv 2201.03514): a derivative-free search over z in R^d; the prompt is p0 + A z."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar

from bbt.config import Config
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.base import Method
from bbt.optimizers import Optimizer, Settings, make_optimizer
from bbt.runs.estimate import Plan, search_plan
from bbt.runs.log import decode_losses, encode_losses
from bbt.scoring.judge import Judge
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy, hinge, negative_metric
from bbt.scoring.objective import Objective
from bbt.scoring.scorer import Scorer
from bbt.scoring.spending import Spending
from bbt.search.tuner import Candidate, Schedule, Tuner
from bbt.spaces.initial import initial_prompts
from bbt.spaces.soft import PromptSpace, Recipe, Space, normal_scale
from bbt.tasks import TASKS
from bbt.types import AnyPrompts, Labels, Losses, Prompts, Scores


class BlackBox(Method):
    """Its settings are the config's own sections: prompt, optimizer, objective, budget, selection."""

    replays: ClassVar[bool] = True

    def plan(self, config: Config) -> Plan:
        """Those of its loop."""
        screened = config.prompt.n_screened if config.prompt.init == "vocabulary" else 1
        return search_plan(config, screened if screened > 1 else 0)

    def train(self, experiment: Experiment) -> Trained:
        """Search until the budget is spent; dev chooses among the candidates it has judged."""
        return Search(experiment).run()


@dataclass
class Search:
    """The experiment's objective, its space of prompts, and the loop over it."""

    experiment: Experiment

    def __post_init__(self) -> None:
        self.train, self.dev = self.experiment.train, self.experiment.dev
        self.objective = self._objective()
        self.spending = self._spending()
        self._p0 = self._initial()
        if self._anchor is not None:
            self.train, self.dev = self.train.anchored(self._p0), self.dev.anchored(self._p0)
            self.objective = self._objective()
        self.space = self._space()
        self._warn_of_cut_rows()
        self.tuner = self._tuner()

    def run(self) -> Trained:
        """Spend the budget."""
        e = self.experiment
        e.observer.started(max(self.tuner.schedule.budgets), "query")
        best = self.tuner.run()
        return Trained(
            self._classifier(best),
            best.who,
            best.verdict,
            best.train_queries,
            self.space.intrinsic_dim,
            self._references(),
        )

    @property
    def _anchor(self) -> Prompts | None:
        """The initial word embeddings (T, H) where the prompt is added after their LayerNorm."""
        return self._p0[0] if self.experiment.config.prompt.placement == "layernorm" else None

    def _classifier(self, best: Candidate) -> Classifier:
        """The best candidate, with how it was found."""
        anchor = None if best.who == "manual" else self._anchor
        facts: dict[str, Any] = {"who": best.who, "train_queries": best.train_queries, "dev": asdict(best.verdict)}
        return self.experiment.soft_prompt(best.prompt, anchor, **facts)

    def _references(self) -> dict[str, Classifier]:
        """What the search started from."""
        e = self.experiment
        return {"manual": e.manual, "untuned": e.soft_prompt(self.space.p0[0], self._anchor)}

    def _objective(self) -> Objective:
        e = self.experiment
        return Objective(self.train, training_loss(e), e.ledger)

    def _judge(self) -> Judge:
        e = self.experiment
        return Judge(self.dev, e.task, e.ledger)

    def _tuner(self) -> Tuner:
        e, c = self.experiment, self.experiment.config
        return Tuner(
            self._optimizer(),
            self.space,
            self.objective,
            self._judge(),
            e.ledger,
            e.log,
            Schedule(self._budgets(), c.budget.dev_every, c.budget.patience, **c.selection.model_dump()),
            e.observer.progressed,
            self.spending,
        )

    def _optimizer(self) -> Optimizer:
        c = self.experiment.config
        return make_optimizer(c.optimizer.name, self._settings(self.space.intrinsic_dim, c.seed))

    def _settings(self, intrinsic_dim: int, seed: int) -> Settings:
        c = self.experiment.config
        own = c.optimizer.model_dump(exclude={"name"})
        return Settings(intrinsic_dim, seed=seed, budget=c.budget.queries, **own)

    def _budgets(self) -> tuple[int, ...]:
        """The budget in queries and what it was extended to."""
        return (self.experiment.config.budget.queries, *self._extensions("queries"))

    def _extensions(self, what: str) -> list[Any]:
        """The `queries` or `ceiling` of every extension of the run."""
        return [event[what] for event in self.experiment.log.of("extend") if what in event]

    def _spending(self) -> Spending | None:
        """The search's money, if the config sets a ceiling.

        Raises:
            ConfigError: a ceiling that is too low to begin with.
        """
        e, c = self.experiment, self.experiment.config
        if c.price.ceiling is None:
            return None
        ceilings = (c.price.ceiling, *self._extensions("ceiling"))
        n_tokens = c.prompt.n_prompt_tokens
        train, dev = e.train.encoded(n_tokens), e.dev.encoded(n_tokens)
        tested = [(3 if c.evaluation.references else 1, e.task, e.split.test)]
        tested += [(1, task, rows) for task, rows in e.other_tests]
        tests = [(n, Scorer(e.backend, task, rows, Ledger()).encoded(n_tokens)) for n, task, rows in tested]
        population, n_judged = c.optimizer.population_size, 1 + c.selection.n_best
        spending = Spending(c.price, e.ledger, ceilings, train, dev, tests, population, n_judged)
        spending.check(c.prompt.n_screened)
        return spending

    def _initial(self) -> Prompts:
        """p0 (1, T, H), screened where asked for."""
        e, c = self.experiment, self.experiment.config.prompt
        return self._screened(initial_prompts(c, e.backend, e.task, e.config.seed))

    def _space(self) -> Space:
        """Word embeddings p0 + A z."""
        e = self.experiment
        return self._subspace(self._p0, e.config.seed, e.backend.info.embedding_std)

    def _subspace(self, p0: Prompts, seed: int, std: float) -> PromptSpace:
        """p0 + A z, A drawn by the seed; `std` is the spread of what A z is added to."""
        c, sigma0 = self.experiment.config.prompt, self.experiment.config.optimizer.sigma0
        d = c.intrinsic_dim
        scale = c.alpha / math.sqrt(d) if c.scale == "paper" else normal_scale(std, d, sigma0, c.alpha)
        return PromptSpace.drawn(p0, Recipe(seed, d, c.projection, scale))

    def _screened(self, prompts: AnyPrompts) -> AnyPrompts:
        """The initial prompt of lowest training loss, a population of one."""
        if len(prompts) == 1:
            return prompts
        e = self.experiment
        recorded = e.log.recall("screen")
        if recorded:
            e.ledger.restore(recorded["ledger"])
            losses = decode_losses(recorded["losses"])
        else:
            start = time.perf_counter()
            losses = self.objective.losses(prompts)
            e.ledger.seconds += time.perf_counter() - start
            e.log.append({"event": "screen", "losses": encode_losses(losses), "ledger": e.ledger.snapshot()})
        best = int(losses.argmin())
        return prompts[best : best + 1]

    def _warn_of_cut_rows(self) -> None:
        n_tokens = self.space.n_prompt_tokens
        for encoded in (self.train.encoded(n_tokens), self.dev.encoded(n_tokens)):
            if encoded.n_truncated:
                rows = f"{encoded.n_truncated} of {encoded.n_examples} rows"
                print(f"warning: {rows} were longer than the model: text cut.", file=sys.stderr)


def training_loss(experiment: Experiment) -> Callable[[Scores, Labels], Losses]:
    """The config's loss, or what the released code trains the task with."""
    objective, task = experiment.config.objective, experiment.task
    name = objective.loss or (TASKS[task.name].loss if task.name in TASKS else "cross_entropy")
    if name == "hinge":
        return partial(hinge, margin=objective.margin)
    if name == "negative_metric":
        return partial(negative_metric, metric=task.metric)
    return cross_entropy
