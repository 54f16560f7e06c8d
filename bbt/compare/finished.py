"""What each cell of a plan has come to is read back from its run folder here."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbt.compare.plan import Cell
from bbt.config import Config, read_run_config
from bbt.differences import first_difference
from bbt.errors import RunError
from bbt.methods import resolved_tree
from bbt.runs.log import EventLog
from bbt.types import Event

ARROW = " → "
"""The sign between a task and the other test set that its classifier was tested on."""


PERPLEXITY = "perplexity"
"""The one figure that is no share, and is not shown in percent."""


def factor(metric: str) -> int:
    """The number that a figure is multiplied by when it is shown: 100 makes percents of shares."""
    return 1 if metric == PERPLEXITY else 100


@dataclass(frozen=True)
class Point:
    """Where a run stood when dev had judged."""

    queries: int
    """The train queries spent so far."""
    seconds: float
    """The seconds spent so far, by scoring and by the optimizer."""
    metric: float
    """The best dev metric so far, in [0, 1]."""


@dataclass(frozen=True)
class Finished:
    """A cell whose run is done."""

    cell: Cell
    """The run that was to be made."""
    result: dict[str, Any]
    """What it came to, as in `result.json`."""
    curve: tuple[Point, ...]
    """How it got there: a point for each dev check."""

    @property
    def scores(self) -> dict[tuple[str, str], float]:
        """The figures by (test set, metric), the perplexity of targets among them; the own test set goes by the task's
        name in the plan."""
        own = {(self.cell.task, metric): value for metric, value in self.result["test"]["tuned"].items()}
        if "tuned" in self.result.get(PERPLEXITY, {}):
            own[self.cell.task, PERPLEXITY] = self.result[PERPLEXITY]["tuned"]
        elsewhere = {
            (f"{self.cell.task}{ARROW}{name}", metric): value
            for name, metrics in self.result.get("also_test", {}).items()
            for metric, value in metrics.items()
            if metric != "examples"
        }
        return {**own, **elsewhere}

    @property
    def first_score(self) -> float:
        """The figure of the task's first metric on its own test set."""
        return next(iter(self.scores.values()))


def finished(cells: Iterable[Cell], runs: Path) -> list[Finished]:
    """The cells whose runs are done.

    Raises:
        RunError: a run that another config has made.
    """
    found = (read(cell, runs) for cell in cells)
    return [one for one in found if one]


def read(cell: Cell, runs: Path) -> Finished | None:
    """What a cell has come to; None where its run has not been begun, or not finished at that budget.

    Raises:
        RunError: the folder's run was made by another config.
    """
    folder = cell.folder(runs)
    if not (folder / "config.yaml").is_file():
        return None
    config = read_run_config(folder)
    _check_config(cell, config, folder)
    events = EventLog(folder / "events.jsonl").events
    result = _result_at(events, cell.budget, _budget(config))
    return Finished(cell, result, _curve(events, result)) if result else None


def _result_at(events: list[Event], budget: int | None, first: int | None) -> Event | None:
    """The latest result that the run had when this budget was spent."""
    current, found = first, None
    for event in events:
        if event["event"] == "extend":
            current = event.get("queries", current)
        elif event["event"] == "result" and budget in (None, current):
            found = event
    return found


def _curve(events: list[Event], result: Event) -> tuple[Point, ...]:
    """The dev judgements up to a result."""
    best, points = 0.0, []
    for event in events:
        if event["event"] == "dev" and event["ledger"]["train_queries"] <= result["cost"]["train_queries"]:
            best = max(best, *event["metrics"])
            cost = event["ledger"]
            points.append(Point(cost["train_queries"], cost["seconds"] + cost["optimizer_seconds"], best))
    return tuple(points)


def _check_config(cell: Cell, made: Config, folder: Path) -> None:
    difference = first_difference(_settings(made), _settings(cell.config))
    if difference:
        raise RunError(
            f"{folder} was run with other settings: {difference} in the plan. Move it away, or give other --runs."
        )


def _settings(config: Config) -> dict[str, Any]:
    """The parts of a config in which a run may not differ from its cell: all but its name, and a budget that was
    extended."""
    tree = {key: value for key, value in resolved_tree(config).items() if key != "name"}
    return {**tree, "budget": {**tree["budget"], "queries": None}} if "budget" in tree else tree


def _budget(config: Config) -> int | None:
    """The budget in queries; None where the method has none."""
    budget: int | None = resolved_tree(config).get("budget", {}).get("queries")
    return budget
