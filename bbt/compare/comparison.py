"""A plan with what has finished of it: a table's rows and columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bbt.compare.finished import ARROW, Finished
from bbt.compare.plan import Cell, Plan


@dataclass(frozen=True)
class Comparison:
    """A plan with what has finished of it."""

    plan: Plan
    """What is compared."""
    cells: Sequence[Cell]
    """Every run that the plan has."""
    finished: Sequence[Finished]
    """Those of them that are done."""

    @cached_property
    def rows(self) -> dict[str, list[Finished]]:
        """A table's rows in the plan's order: a method (at a budget, with so many shots) and its finished runs."""
        labels = dict.fromkeys(self.label(cell) for cell in sorted(self.cells, key=self._order))
        groups: dict[str, list[Finished]] = {label: [] for label in labels}
        for one in self.finished:
            groups[self.label(one.cell)].append(one)
        return groups

    def label(self, cell: Cell) -> str:
        """What a cell's row is called: with its budget where a task has several."""
        at = f" at {cell.budget}" if cell.budget and self._several_budgets else ""
        return cell.method + at + (f", k = {cell.k}" if cell.k is not None else "")

    @cached_property
    def _several_budgets(self) -> bool:
        budgets = {(cell.task, cell.budget) for cell in self.cells if cell.budget}
        return len(budgets) > len({task for task, _ in budgets})

    def _order(self, cell: Cell) -> tuple[int, int, int]:
        return list(self.plan.methods).index(cell.method), cell.budget or 0, cell.k or 0

    @cached_property
    def columns(self) -> list[tuple[str, str]]:
        """(test set, metric) of every figure, tasks in the plan's order, a task's other test sets after its own."""
        found = dict.fromkeys(key for one in self.finished for key in one.scores)
        tasks = list(self.plan.tasks)
        return sorted(found, key=lambda key: (tasks.index(key[0].partition(ARROW)[0]), ARROW in key[0]))

    def scores(self, label: str, column: tuple[str, str]) -> dict[int, float]:
        """Seed -> figure of one row in one column."""
        return {one.cell.seed: one.scores[column] for one in self.rows[label] if column in one.scores}

    def n_planned(self, label: str, task: str) -> int:
        """How many runs the plan has for a row's task."""
        return sum(self.label(cell) == label and cell.task == task for cell in self.cells)

    def pairs(self, method: str, other: str) -> list[tuple[str, str]]:
        """The rows of two methods that can be put side by side: not at different budgets or shots."""
        ours, theirs = ([cell for cell in self.cells if cell.method == name] for name in (method, other))
        return list(
            dict.fromkeys(
                (self.label(a), self.label(b))
                for a in ours
                for b in theirs
                if a.k == b.k and (a.budget == b.budget or None in (a.budget, b.budget))
            )
        )
