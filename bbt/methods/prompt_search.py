"""Black-Box Tuning and its kin share this search: an objective, a space of prompts, and the loop over it."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from bbt.experiment.classifiers import Classifier, SoftPromptClassifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator
from bbt.experiment.many_words import read_out
from bbt.optimizers import Optimizer, Settings, make_optimizer
from bbt.runs.log import decode_losses, encode_losses
from bbt.scoring.judge import DevJudge, Judge
from bbt.scoring.ledger import Ledger, warn_of_cut_rows
from bbt.scoring.losses import load_loss
from bbt.scoring.many_words import WordsJudge, WordsObjective
from bbt.scoring.objective import Objective, ScoredLoss, TrainingLoss
from bbt.scoring.scorers import scorer_of
from bbt.scoring.spending import Spending
from bbt.search.asynchronous import AsynchronousTuner, n_ahead
from bbt.search.schedule import Schedule
from bbt.search.tuner import Candidate, Tuner
from bbt.settings import (
    BudgetConfig,
    HardPromptConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PopulationConfig,
    PromptConfig,
    PromptLength,
    SelectionConfig,
    TiedPromptConfig,
)
from bbt.spaces.initial import initial_prompts, n_screened
from bbt.spaces.soft import PromptSpace, Recipe, Space, normal_scale
from bbt.types import AnyPrompts, Labels, Losses, Prompts, Scores


class SearchSettings(Protocol):
    """The settings of any search over prompts, which are sections of a config."""

    @property
    def prompt(self) -> PromptLength:
        """The prompt's length, and what else the search asks of it."""

    @property
    def optimizer(self) -> PopulationConfig:
        """What proposes candidates."""

    @property
    def objective(self) -> ObjectiveConfig:
        """The training loss that is minimised."""

    @property
    def budget(self) -> BudgetConfig:
        """How many queries there are, and how often dev judges."""

    @property
    def selection(self) -> SelectionConfig:
        """What dev judges, and by what."""


class SoftSettings(SearchSettings, Protocol):
    """The settings of a search over p0 + A z."""

    @property
    def prompt(self) -> PromptConfig:
        """The prompt's length, where the search begins, and its space."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """What proposes candidates."""


@dataclass
class PromptSearch(ABC):
    """An experiment's objective, a space of prompts, and the loop over it. Each kind of search says what is
    searched."""

    experiment: Experiment
    """The parts of the run."""
    settings: SearchSettings
    """The sections of the config that the search reads."""

    def __post_init__(self) -> None:
        e = self.experiment
        self._check_budget()
        self.train, self.dev, self.content_free = e.train, e.dev, e.content_free
        self.objective = self._objective()
        self.spending = self._spending()
        self._p0 = self._initial()
        if self._anchor is not None:
            self.train, self.dev = e.train.anchored(self._p0), e.dev.anchored(self._p0)
            self.content_free = e.content_free and e.content_free.anchored(self._p0)
            self.objective = self._objective()
        self.space = self._space()
        self._warn_of_cut_rows()
        self.tuner = self._tuner()

    def run(self) -> Trained:
        """Search until the budget is spent."""
        self.experiment.observer.started(self.tuner.schedule.n_queries(self._n_screened), "query")
        best = self.tuner.run()
        known = {one.who: one.verdict.biases for one in self.tuner.baselines}
        classifier, biases = self._read_out(self._classifier(best))
        given = self._references()  # of them the manual prompt stays as it is, read from the label words alone
        references = {name: (one, None) if name == "manual" else self._read_out(one) for name, one in given.items()}
        return Trained(
            classifier,
            best.who,
            best.verdict if biases is None else replace(best.verdict, biases=biases),
            best.train_queries,
            self.space.intrinsic_dim
            + (classifier.prompt.n_weights if isinstance(classifier, SoftPromptClassifier) else 0),
            {name: one for name, (one, _) in references.items()},
            biases={**known, **{name: found for name, (_, found) in references.items() if found}},
        )

    def _read_out(self, classifier: Classifier | Generator) -> tuple[Classifier | Generator, tuple[float, ...] | None]:
        """The classifier with its own readout, and the class biases of that: see `bbt.experiment.many_words`."""
        if not isinstance(classifier, SoftPromptClassifier):
            return classifier, None
        return read_out(self.experiment, classifier, (self.train, self.dev))

    @abstractmethod
    def _initial(self) -> Prompts:
        """The initial prompt p0 (1, T, H), screened where that is asked for."""

    @abstractmethod
    def _space(self) -> Space:
        """The space around p0 that is searched."""

    @abstractmethod
    def _optimizer(self) -> Optimizer:
        """What proposes points of the space."""

    @abstractmethod
    def _classifier(self, best: Candidate) -> Classifier | Generator:
        """The best candidate as a classifier or a generator, with how it was found."""

    @abstractmethod
    def _references(self) -> Mapping[str, Classifier | Generator]:
        """The classifiers or generators that the search started from, by name."""

    @property
    def _anchor(self) -> Prompts | None:
        """The word embeddings (T, H) to which, after their LayerNorm, a prompt's difference from them is added; None
        where the prompt itself stands for word embeddings."""
        return None

    @property
    def _n_screened(self) -> int:
        """The queries that are spent on p0."""
        return 0

    def _objective(self) -> TrainingLoss:
        e = self.experiment
        if e.strength:
            return WordsObjective(self.train, self._loss(), e.ledger, len(e.task.label_words), e.strength)
        return Objective(self.train, self._loss(), e.ledger, e.calibration, self.content_free)

    def _loss(self) -> Callable[[Scores, Labels], Losses]:
        """The loss that the settings name, or else the task's own."""
        task, objective = self.experiment.task, self.settings.objective
        return load_loss(objective.loss or task.loss, objective.margin, task.metric)

    def _judge(self) -> DevJudge:
        e = self.experiment
        if e.strength:
            return WordsJudge(self.dev, e.task, e.ledger, self.train, e.strength)
        return Judge(self.dev, e.task, e.ledger, e.calibration, self.train, self.content_free)

    def _tuner(self) -> Tuner:
        e = self.experiment
        kind = AsynchronousTuner if self._asynchronous else Tuner
        return kind(
            self._optimizer(),
            self.space,
            self.objective,
            self._judge(),
            e.ledger,
            e.log,
            schedule(self.settings, self._budgets()),
            e.observer.progressed,
            self.spending,
            None if self._asynchronous else self._scored(),
        )

    def _scored(self) -> ScoredLoss | None:
        """The objective as what tells label scores; none here: prompts of words that come again are answered from
        memory, without scores."""
        return None

    def _optimizer_settings(self, intrinsic_dim: int, seed: int) -> Settings:
        own = self.settings.optimizer.model_dump(exclude={"name", "asynchronous"})
        return Settings(intrinsic_dim, seed=seed, budget=self.settings.budget.queries, **own)

    @property
    def _asynchronous(self) -> bool:
        """Whether a generation waits for no straggler."""
        optimizer = self.settings.optimizer
        return isinstance(optimizer, OptimizerConfig) and optimizer.asynchronous

    def _check_budget(self) -> None:
        """Refuse a budget with which nothing can be searched, unless a run has been made with it.

        Raises:
            ConfigError: it does not hold the screening and a generation.
        """
        if not self.experiment.log.of("generation"):
            schedule(self.settings, (self.settings.budget.queries,)).check_least(self._n_screened)

    def _budgets(self) -> tuple[int, ...]:
        """The budget in queries, then what each extension raised it to."""
        return (self.settings.budget.queries, *self._extensions("queries"))

    def _extensions(self, what: str) -> list[Any]:
        """The `queries` or `ceiling` of every extension of the run, as `what` says."""
        return [event[what] for event in self.experiment.log.of("extend") if what in event]

    def _spending(self) -> Spending | None:
        """The search's money, if the experiment has a ceiling.

        Raises:
            ConfigError: a ceiling that is too low to begin with.
        """
        e, s = self.experiment, self.settings
        if e.price.ceiling is None:
            return None
        ceilings = (e.price.ceiling, *self._extensions("ceiling"))
        n_tokens = s.prompt.n_prompt_tokens
        train, dev = e.train.encoded(n_tokens), e.dev.encoded(n_tokens)
        tested = [(3 if e.references else 1, e.task, e.split.test), *((1, task, rows) for task, rows in e.other_tests)]
        tests = [(n, scorer_of(e.backend, task, rows, Ledger()).encoded(n_tokens)) for n, task, rows in tested]
        judged = [dev, train] if e.calibration == "fitted" else [dev]
        if e.references and not s.selection.baselines:
            tests += [(2, rows) for rows in judged]  # what the class biases of the references take
        if e.strength:
            tests += [(3 if e.references else 1, rows) for rows in judged]  # the readouts at the end
        population, n_judged = s.optimizer.population_size, 1 + s.selection.n_best
        population += n_ahead(population) if self._asynchronous else 0
        spending = Spending(e.price, e.ledger, ceilings, train, judged, tests, population, n_judged)
        spending.check(self._n_screened)
        return spending

    def _screened(self, prompts: AnyPrompts) -> AnyPrompts:
        """The initial prompt of lowest training loss, as a population of one."""
        if len(prompts) == 1:
            return prompts
        e = self.experiment
        recorded = e.log.recall("screen")
        if recorded:
            e.ledger.restore(recorded["ledger"])
            losses = decode_losses(recorded["losses"])
            self.objective.remember(prompts, losses)
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
            warn_of_cut_rows(encoded.n_truncated, encoded.n_examples)


@dataclass
class SoftSearch(PromptSearch):
    """The search over soft prompts p0 + A z."""

    settings: SoftSettings
    """The sections of the config that the search reads."""

    def _initial(self) -> Prompts:
        e = self.experiment
        return self._screened(initial_prompts(self.settings.prompt, e.backend, e.task, e.split.train, e.seed))

    def _space(self) -> Space:
        e = self.experiment
        tied = isinstance(self.settings.prompt, TiedPromptConfig) and self.settings.prompt.tied
        return drawn_space(self._p0, self.settings.prompt, self._sigma0, e.seed, e.backend.info.embedding_std, tied)

    def _scored(self) -> ScoredLoss | None:
        return self.objective if isinstance(self.objective, ScoredLoss) else None

    def _optimizer(self) -> Optimizer:
        settings = self._optimizer_settings(self.space.intrinsic_dim, self.experiment.seed)
        return make_optimizer(self.settings.optimizer.name, settings)

    def _classifier(self, best: Candidate) -> Classifier | Generator:
        anchor = None if best.who == "manual" else self._anchor
        return self.experiment.soft_prompt(np.asarray(best.prompt), anchor, **found(best))

    def _references(self) -> Mapping[str, Classifier | Generator]:
        e = self.experiment
        untuned = e.soft_prompt(self.space.p0[0], self._anchor)
        if e.strength is None:
            return {"manual": e.manual, "untuned": untuned}
        return {"manual": e.manual, "manual words": e.manual, "untuned": untuned}

    @property
    def _anchor(self) -> Prompts | None:
        return self._p0[0] if self.settings.prompt.placement == "layernorm" else None

    @property
    def _n_screened(self) -> int:
        return n_screened(self.settings.prompt)

    @property
    def _sigma0(self) -> float:
        return self.settings.optimizer.sigma0


def found(best: Candidate) -> dict[str, Any]:
    """How a candidate was found, for its provenance."""
    return {"who": best.who, "train_queries": best.train_queries, "dev": best.verdict.facts()}


def schedule(settings: SearchSettings, budgets: tuple[int, ...]) -> Schedule:
    """The schedule of a search with these settings and budgets."""
    s = settings
    return Schedule(
        budgets, s.optimizer.population_size, s.budget.dev_every, s.budget.patience, **s.selection.model_dump()
    )


def drawn_space(
    p0: Prompts, prompt: HardPromptConfig, sigma0: float, seed: int, std: float, tied: bool = False
) -> PromptSpace:
    """Make the space p0 + A z, where A is drawn by the seed; `std` is the standard deviation of what A z is added
    to."""
    d = prompt.intrinsic_dim
    scale = prompt.alpha / math.sqrt(d) if prompt.scale == "paper" else normal_scale(std, d, sigma0, prompt.alpha)
    return PromptSpace.drawn(p0, Recipe(seed, d, prompt.projection, scale, tied))
