"""A schedule says when a search scores, when dev judges, and when it ends. One loop drives the search itself and counts
its queries beforehand."""

from dataclasses import dataclass
from typing import Protocol

from bbt.errors import ConfigError
from bbt.runs.estimate import PlannedQueries


class Searching(Protocol):
    """The protocol of a search, as far as a schedule drives it."""

    last_check: int
    """The train queries that had been spent at the last dev check."""

    @property
    def spent(self) -> int:
        """The train queries spent so far."""

    @property
    def recorded(self) -> str | None:
        """The next event of a run that is being replayed; None where its record ends."""

    def done(self) -> bool:
        """Whether the search ends before its budget does."""

    def generation(self) -> None:
        """Score a population."""

    def check(self) -> None:
        """Let dev judge, and set `last_check`."""


@dataclass(frozen=True)
class Schedule:
    """A search's budget and its dev checks.

    A budget is a ceiling: a generation is scored whole or not at all, so that every optimizer is told of whole
    populations, and the search ends before the one that would exceed the budget.
    """

    budgets: tuple[int, ...]
    """Train queries, screening included: the budget that the run began with, then what each extension raised it to."""
    population_size: int
    """The train queries of a generation, at most: a search over prompts of words scores nothing twice."""
    dev_every: int = 100
    """Train queries between two dev checks; dev also judges where one of the budgets ends."""
    patience: int | None = None
    """Dev checks without a better candidate after which the search ends for good (none: it does not)."""
    n_best: int = 1
    """Candidates of lowest training loss that a check judges beside the distribution's mean."""
    by: str = "metric"
    """What dev judges by: `metric` or `loss`."""
    baselines: bool = True
    """Whether the untuned prompt is judged too, and the manual one stays unless it is clearly beaten."""
    margin: float = 1.0
    """The standard errors by which the manual prompt must be beaten."""

    def drive(self, search: Searching) -> None:
        """Take the search to the end of its last budget.

        A record is replayed as it stands, its generations and checks in their order: a run of an earlier version may
        have spent more than its budget, by part of a generation.
        """
        search.last_check = search.spent
        while (search.recorded == "generation" or self.affords(search.spent)) and not search.done():
            before = search.spent
            search.generation()
            due = self._ends_a_budget(before, search.spent) or search.spent - search.last_check >= self.dev_every
            if due if search.recorded is None else search.recorded == "dev":
                search.check()

    def affords(self, spent: int) -> bool:
        """Whether the last budget holds another generation."""
        return spent + self.population_size <= max(self.budgets)

    def room(self, spent: int) -> int:
        """The train queries, in whole generations, that the budget which ends next has still room for."""
        n = self.population_size
        ends = [budget for budget in self.budgets if spent + n <= budget]
        return (min(ends) - spent) // n * n if ends else n

    def _ends_a_budget(self, before: int, spent: int) -> bool:
        """Whether one of the budgets held the last generation and does not hold another."""
        n = self.population_size
        return any(before + n <= budget < spent + n for budget in self.budgets)

    def check_least(self, n_screened: int) -> None:
        """Refuse a budget with which nothing can be searched, before a query is spent.

        Raises:
            ConfigError: it does not hold the screening of the initial prompts and one generation.
        """
        least = n_screened + self.population_size
        if least > self.budgets[0]:
            screening = f"screening {n_screened} initial prompts (prompt.n_screened) and " if n_screened else ""
            raise ConfigError(
                f"budget.queries is {self.budgets[0]}, but {screening}one generation of {self.population_size} "
                f"(optimizer.population_size) need {least} queries. Raise it, or lower those."
            )

    def n_queries(self, n_screened: int) -> int:
        """Train queries of a search that goes on until its last budget is spent."""
        return self._counted(n_screened).spent

    def _counted(self, n_screened: int) -> "_Counted":
        counted = _Counted(self.population_size, n_screened)
        self.drive(counted)
        return counted

    def plan(self, n_screened: int, references: bool) -> PlannedQueries:
        """The queries of a search that goes on until its budget is spent, and of the test that follows.

        Raises:
            ConfigError: a budget with which nothing can be searched.
        """
        self.check_least(n_screened)
        counted = self._counted(n_screened)
        judged = counted.checks * (1 + self.n_best) + int(self.baselines)
        return PlannedQueries(
            counted.spent,
            judged,
            int(self.baselines),
            1 + int(references),
            int(references),
            judged_references=self.baselines,
        )


@dataclass
class _Counted:
    """A search that scores nothing and only counts."""

    population_size: int
    """The train queries of a generation."""
    spent: int
    """The train queries counted so far."""
    last_check: int = 0
    """The train queries that had been counted at the last dev check."""
    checks: int = 0
    """The dev checks counted so far."""
    recorded: str | None = None
    """The next event of a record, of which there is none here."""

    def done(self) -> bool:
        return False

    def generation(self) -> None:
        self.spent += self.population_size

    def check(self) -> None:
        self.checks += 1
        self.last_check = self.spent
