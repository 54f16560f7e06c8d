"""The table of test scores has methods as rows, tasks as columns, and the mean and sample standard deviation over seeds
in its cells."""

from collections.abc import Sequence
from statistics import mean, stdev

from bbt.compare.comparison import Comparison
from bbt.compare.finished import ARROW, PERPLEXITY, Finished, factor
from bbt.compare.plan import Cell
from bbt.compare.table import NOTHING, Table


def score_table(comparison: Comparison) -> Table:
    """The table of test scores in percent, like the paper's, with the mean of the tasks' first metrics; perplexities
    are as they are."""
    columns = comparison.columns
    unit = "%; perplexity as it is" if any(metric == PERPLEXITY for _, metric in columns) else "%"
    head = ("method", *(f"{test} {metric}" for test, metric in columns), "mean")
    rows = [
        (
            label,
            *(_cell(comparison, label, column) for column in columns),
            _mean_of_tasks(comparison, label),
        )
        for label in comparison.rows
    ]
    return Table(f"Test scores ({unit}), {_model(comparison)}", head, tuple(rows), tuple(_notes(comparison)))


def spread(values: Sequence[float], times: int = 100) -> str:
    """The mean and the sample standard deviation of values, in percent unless they are multiplied by something else."""
    if not values:
        return NOTHING
    return f"{times * mean(values):.2f}" + (f" ± {times * stdev(values):.2f}" if len(values) > 1 else "")


def _cell(comparison: Comparison, label: str, column: tuple[str, str]) -> str:
    """The spread over the seeds, with a mark where some have not finished."""
    found, wanted = comparison.scores(label, column), comparison.n_planned(label, column[0].partition(ARROW)[0])
    shown = spread(list(found.values()), factor(column[1]))
    return shown + (f" ({len(found)} of {wanted} seeds)" if 0 < len(found) < wanted else "")


def _mean_of_tasks(comparison: Comparison, label: str) -> str:
    """The mean of the tasks' mean first metrics; it is left out where a task is missing."""
    first = {test: (test, metric) for test, metric in reversed(comparison.columns) if ARROW not in test}
    means = [list(comparison.scores(label, column).values()) for column in first.values()]
    return f"{100 * mean(map(mean, means)):.2f}" if means and all(means) else NOTHING


def _notes(comparison: Comparison) -> list[str]:
    """The sentences below the table, which say what each column is of."""
    notes = ["mean ± sample standard deviation over seeds; a seed draws the k-shot split and the method's randomness."]
    for task in comparison.plan.tasks:
        of_task = [one for one in comparison.finished if one.cell.task == task]
        if of_task:
            notes.append(f"{task}: {_about(comparison, of_task)}")
    return notes


def _about(comparison: Comparison, of_task: Sequence[Finished]) -> str:
    """The sentence on one task: its rows, split, shots and seeds."""
    one = of_task[0]
    config, seeds = one.cell.config, comparison.plan.seeds_of(one.cell.task)
    of = "rows" if PERPLEXITY in one.result else "a class"
    shots = f"k = {', '.join(map(str, comparison.plan.k or (config.data.k,)))} {of}"
    drawn = " drawn from" if config.evaluation.rows == one.result["test_examples"] else ""
    budgets = comparison.plan.budgets_of(one.cell.task)
    facts = [
        f"{one.result['test_examples']:,} test rows{drawn}: {_source(one.cell)}",
        shots,
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}",
        *([f"a budget of {' or '.join(map(str, budgets))} queries for searches"] if budgets else []),
    ]
    others = [f"{name}: {metrics['examples']:,} rows" for name, metrics in one.result.get("also_test", {}).items()]
    cut = max(run.result["test_truncated"] for run in of_task)
    return "; ".join([*facts, *others, *([f"{cut} test rows cut to the model's length"] if cut else [])])


def _source(cell: Cell) -> str:
    data = cell.config.data
    if data.note:
        return data.note
    return {
        "bundled": "the bundled rows (bbt/tasks/bundled)",
        "files": f"{data.test}",
        "huggingface": f"{data.path or 'the task s own data set'} on the hub",
    }[data.source]


def _model(comparison: Comparison) -> str:
    models = dict.fromkeys(one.result["model"] for one in comparison.finished)
    return ", ".join(models) or "nothing finished yet"
