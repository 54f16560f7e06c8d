"""What the methods cost becomes a table, and every run one flat record."""

import csv
import io
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from bbt.compare.comparison import Comparison
from bbt.compare.table import NOTHING, Table

COSTS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "tuned numbers": lambda result: result.get("n_parameters"),
    "train queries": lambda result: result["cost"]["train_queries"],
    "dev queries": lambda result: result["cost"]["dev_queries"],
    "tokens": lambda result: _tokens(result["cost"]),
    "examples forwarded": lambda result: result["cost"]["examples"],
    "seconds": lambda result: result["cost"]["seconds"] + result["cost"]["optimizer_seconds"],
    "peak memory (MB)": lambda result: result["peak_memory_mb"],
    "bytes up per query": lambda result: _per_query(result, "bytes_up"),
    "bytes down per query": lambda result: _per_query(result, "bytes_down"),
}
"""The columns of the cost table, and the function that reads each one from a result."""


def _tokens(cost: dict[str, Any]) -> float | None:
    """The tokens that went in and came out; runs of version 0.1 have not counted them."""
    return cost["tokens_up"] + cost["tokens_down"] if "tokens_up" in cost else None


def _per_query(result: dict[str, Any], what: str) -> float:
    """The cost `what` of a run, averaged over its train and dev queries."""
    cost = result["cost"]
    return float(cost[what] / max(cost["train_queries"] + cost["dev_queries"], 1))


def cost_tables(comparison: Comparison) -> list[Table]:
    """The tables of what the methods cost, one for each task. Figures are means over seeds; of peak memory it is the
    largest."""
    return [
        Table(f"Cost on {task}", ("method", *COSTS), tuple(_cost_rows(comparison, task)), COST_NOTES)
        for task in comparison.plan.tasks
        if any(one.cell.task == task for one in comparison.finished)
    ]


COST_NOTES = (
    "A train query is one candidate (or one pass of a training) over the whole k-shot training set; dev queries are "
    "counted apart; test rows are in none of it. Bytes are prompts sent and label scores returned, as float32. "
    "Peak memory is the GPU's where the model is on one, else the process's.",
    "Tokens are those of the rows, prompt tokens included, as often as they went through the model, and those that it "
    "gave: of a text each one, else one for each score.",
)


def _cost_rows(comparison: Comparison, task: str) -> list[tuple[str, ...]]:
    rows = []
    for label, runs in comparison.rows.items():
        results = [one.result for one in runs if one.cell.task == task]
        if results:
            rows.append((label, *(_cost(name, [value(r) for r in results]) for name, value in COSTS.items())))
    return rows


def _cost(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    value = max(known) if name.startswith("peak") else mean(known)
    return f"{value:,.1f}" if name == "seconds" else f"{value:,.0f}"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every finished cell as one flat record, as a spreadsheet or pandas wants it."""
    return [
        {
            "task": one.cell.task,
            "method": one.cell.method,
            "seed": one.cell.seed,
            "k": one.cell.config.data.k,
            "budget": one.cell.budget,
            "test_rows": one.result["test_examples"],
            **{f"{test} {metric}": value for (test, metric), value in one.scores.items()},
            "dev metric": one.result["selected"]["metric"],
            "dev loss": one.result["selected"]["loss"],
            **{name: value(one.result) for name, value in COSTS.items()},
        }
        for one in comparison.finished
    ]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Records as CSV, with a column for every key."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
