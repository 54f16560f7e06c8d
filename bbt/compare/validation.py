"""k-fold cross-validation within the k-shot rows: which of the plan's methods (settings) the labelled rows choose,
without a look at the test set."""

from collections.abc import Sequence
from statistics import mean

from bbt.compare.comparison import Comparison
from bbt.compare.finished import Finished
from bbt.compare.scores import spread
from bbt.compare.table import Table


def validation_table(comparison: Comparison, folds: int) -> Table:
    """The table of methods x tasks with the dev metric over folds and seeds, and the method chosen for each task."""
    tasks = list(comparison.plan.tasks)
    rows = [(label, *(spread(_metrics(runs, task)) for task in tasks)) for label, runs in comparison.rows.items()]
    chosen = ("chosen", *(best(comparison, task) or "(not finished)" for task in tasks))
    head = ("method", *(f"{task} dev" for task in tasks))
    notes = (
        f"{folds}-fold cross-validation: train and dev rows of each seed pooled, a fold of them dev, the rest train. "
        "Mean ± sample standard deviation over folds and seeds (%); no test row was read.",
        "A method that judges several candidates on its dev fold keeps the best of them, so that the figures flatter: "
        "they are for choosing, not for reporting. Chosen by the mean metric, ties by the mean dev loss.",
    )
    return Table(f"Cross-validation over {folds} folds", head, (*rows, chosen), notes)


def best(comparison: Comparison, task: str) -> str | None:
    """The row of highest mean dev metric, with ties broken by dev loss; None until every run of the task is done."""
    rows = {
        label: [one for one in runs if one.cell.task == task]
        for label, runs in comparison.rows.items()
        if comparison.n_planned(label, task)
    }
    if any(len(runs) < comparison.n_planned(label, task) for label, runs in rows.items()):
        return None
    return max(rows, key=lambda label: (mean(_metrics(rows[label], task)), -mean(_losses(rows[label]))))


def _metrics(runs: Sequence[Finished], task: str) -> list[float]:
    return [one.result["selected"]["metric"] for one in runs if one.cell.task == task]


def _losses(runs: Sequence[Finished]) -> list[float]:
    return [one.result["selected"]["loss"] for one in runs]
