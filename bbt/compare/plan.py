"""A plan: methods x tasks x seeds (x budgets, x shots) in one YAML file, laid out as cells with a config each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from bbt.cluster import Resources
from bbt.config import SECTIONS, Config, make_config, merged, read_tree, validated
from bbt.errors import ConfigError, unknown
from bbt.methods import load_method
from bbt.settings import Strict


class Entry(Strict):
    """A task or a method of a plan: keys of a config (beside those named here), over the plan's `base`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def tree(self) -> dict[str, Any]:
        """The config's keys that the entry gives."""
        return dict(self.model_extra or {})


class TaskEntry(Entry):
    """An entry of a plan that is a task."""

    config: Path | None = None
    """A config file, over whose keys the task's own win."""
    seeds: tuple[int, ...] | None = None
    """Its seeds (none: the plan's)."""
    budgets: tuple[int, ...] | None = None
    """Its budgets in queries (none: the plan's)."""


class MethodEntry(Entry):
    """An entry of a plan that is a method."""

    tasks: tuple[str, ...] | None = None
    """The tasks that it is run on (none: all)."""
    resources: Resources = Resources()
    """What a run of it asks for, where that is not what the plan says."""


class Only(Strict):
    """The runs that a budget is restricted to."""

    tasks: tuple[str, ...] | None = None
    """The tasks that are run (none: all)."""
    methods: tuple[str, ...] | None = None
    """The methods that are run (none: all)."""
    seeds: tuple[int, ...] | None = None
    """The seeds that are run (none: all)."""

    def allows(self, task: str, method: str, seed: int) -> bool:
        """Whether the budget applies to this run."""
        pairs = ((self.tasks, task), (self.methods, method), (self.seeds, seed))
        return all(allowed is None or value in allowed for allowed, value in pairs)


class Plan(Strict):
    """A plan of what is compared. Of the keys of a run's config later ones win: base, the task's file, the task's keys,
    the method's keys."""

    title: str | None = None
    """The page's title (none: the file's name)."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Keys of a config that all runs share."""
    tasks: dict[str, TaskEntry] = Field(min_length=1)
    """The tasks by the name that the tables give them."""
    methods: dict[str, MethodEntry | None] = Field(min_length=1)
    """The methods by the name that the tables give them, in the tables' order."""
    resources: Resources = Resources()
    """What each run asks of a cluster's node; its CPUs are its threads on this machine, too."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """The seeds with which every task is run by every method."""
    budgets: tuple[int, ...] = ()
    """Budgets in queries, for the methods that search by queries, whose runs a larger budget extends; others run once,
    as their config says (none: so do these)."""
    k: tuple[int, ...] = ()
    """Rows a class: with several the comparison is a learning curve (none: as the configs say)."""
    only: dict[int, Only] = Field(default_factory=dict)
    """Budget -> the runs that it is restricted to."""
    published: bool = False
    """Whether the papers' figures are shown, in a table of their own."""
    against: tuple[str, ...] = ()
    """The methods that every other one is tested against over the seeds (none: the first)."""

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The seeds that a task is to be run with."""
        return self.tasks[task].seeds or self.seeds

    def budgets_of(self, task: str) -> tuple[int, ...]:
        """The budgets of a task's searches; none: what their configs say."""
        return self.tasks[task].budgets or self.budgets


@dataclass(frozen=True)
class Cell:
    """One run at one budget. Its folder is `<runs>/<task>/<name>`."""

    task: str
    """The task's name in the plan."""
    method: str
    """The method's name in the plan."""
    seed: int
    """The run's seed."""
    config: Config = field(compare=False)
    """What is run."""
    budget: int | None = None
    """The budget in queries (none: the method does not search by queries, or its config says)."""
    k: int | None = None
    """Rows a class (none: as the config says)."""
    fold: int | None = None
    """The number, from 0 on, of the fold that is dev (none: this is no cross-validation)."""
    round: int = 0
    """The place of the budget among its task's, from 0 on."""
    resources: Resources = field(default=Resources(), compare=False)
    """What the run asks for."""

    @property
    def name(self) -> str:
        """The run's name in its task's folder."""
        shots = f"-k{self.k}" if self.k is not None else ""
        fold = f"-fold{self.fold}" if self.fold is not None else ""
        return f"{self.method}{shots}-seed{self.seed}{fold}"

    def folder(self, runs: Path) -> Path:
        """The run's folder under `runs`."""
        return runs / self.task / self.name

    def __str__(self) -> str:
        at = f" at {self.budget} queries" if self.budget else ""
        return f"{self.task}/{self.name}{at}"


def load_plan(path: Path) -> Plan:
    """Read and check a plan; every config in it is made once.

    Raises:
        ConfigError: an unknown key, a value that no config takes, a name that is not in the plan.
    """
    plan = validated(Plan, read_tree(path))
    named = [name for entry in plan.methods.values() if entry for name in entry.tasks or ()]
    _check_names("task", [*named, *(t for only in plan.only.values() for t in only.tasks or ())], plan.tasks)
    rules = (m for only in plan.only.values() for m in only.methods or ())
    _check_names("method", [*plan.against, *rules], plan.methods)
    cells(plan)
    return plan


def cells(plan: Plan, folds: int | None = None) -> list[Cell]:
    """Lay out every run of the plan: small budgets first (with them what has none), then early seeds, so that a
    comparison cut short is even.

    Raises:
        ConfigError: a config that cannot be; names task and method.
    """
    found = [cell for task in plan.tasks for method in plan.methods for cell in _cells_of(plan, task, method, folds)]
    return sorted(found, key=lambda cell: (cell.round, cell.seed, cell.k or 0))


def _cells_of(plan: Plan, task: str, method: str, folds: int | None) -> Iterator[Cell]:
    """Yield the runs of one task by one method."""
    entry = plan.methods[method]
    if entry and entry.tasks is not None and task not in entry.tasks:
        return
    resources = entry.resources.over(plan.resources) if entry else plan.resources
    for i, budget in enumerate(_budgets(plan, task, method)):
        for seed in plan.seeds_of(task):
            if budget is None or plan.only.get(budget, Only()).allows(task, method, seed):
                for k in plan.k or (None,):
                    for fold in range(folds) if folds else (None,):
                        config = _config(plan, task, method, _axes(seed, budget, k, folds, fold))
                        cell = Cell(task, method, seed, config, budget, k, fold, i, resources)
                        yield replace(cell, config=config.model_copy(update={"name": cell.name}))


def _budgets(plan: Plan, task: str, method: str) -> tuple[int | None, ...]:
    """The budgets that a method is run at: (None,) if it does not search by queries, or the config says."""
    searches = load_method(_config(plan, task, method, {})).replays
    return (plan.budgets_of(task) or (None,)) if searches else (None,)


def _axes(seed: int, budget: int | None, k: int | None, folds: int | None, fold: int | None) -> dict[str, Any]:
    """The keys that tell one cell's config from the next one's."""
    shots = {} if k is None else {"k": k}
    part = {} if fold is None else {"folds": folds, "fold": fold}
    queries = {} if budget is None else {"budget": {"queries": budget}}
    untested = {} if fold is None else {"evaluation": {"rows": 0, "also_test": {}}}
    return {"seed": seed, "data": {**shots, **part}, **queries, **untested}


def _config(plan: Plan, task: str, method: str, axes: Mapping[str, Any]) -> Config:
    of_task, of_method = plan.tasks[task], plan.methods[method] or MethodEntry()
    from_file = read_tree(of_task.config) if of_task.config else {}
    shared = merged(merged(plan.base, from_file), of_task.tree)
    own = merged(of_method.tree, axes)
    try:
        config = make_config(*_shared_apart(shared, own))
        load_method(config)
    except ConfigError as error:
        raise ConfigError(f"{method} on {task}: {error}") from error
    return config


def _shared_apart(shared: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two parts of a cell's keys: what `make_config` is to take strictly, and the sections that all methods of the plan
    share, of which it takes what the method reads."""
    sections = {key: value for key, value in shared.items() if key in SECTIONS}
    return merged({key: value for key, value in shared.items() if key not in SECTIONS}, own), sections


def _check_names(what: str, names: list[str], valid: Mapping[str, object]) -> None:
    for name in names:
        if name not in valid:
            raise ConfigError(unknown(f"{what} of the plan", name, valid))
