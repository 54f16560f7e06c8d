"""A comparison becomes one HTML page that needs nothing else: sortable tables, pictures, the plan, what failed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bbt.compare.comparison import Comparison
from bbt.compare.plots import X_AXES, cost_plot, shots_plot, spread_plot
from bbt.compare.table import Table
from bbt.compare.work import Failure
from bbt.pages import picture, rendered
from bbt.runs.environment import environment

LOG = logging.getLogger(__name__)


def page(title: str, comparison: Comparison, tables: Sequence[Table], failures: Sequence[Failure], plan: str) -> str:
    """The text of the whole page; `plan` is the plan's own text."""
    return rendered(
        "comparison.html",
        title=title,
        n_done=len(comparison.finished),
        n_planned=len(comparison.cells),
        failures=failures,
        tables=tables,
        drawings=[(name, picture(svg)) for name, svg in _plots(comparison)],
        plan=plan,
        versions=_versions(),
    )


def _plots(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The name and the SVG of each picture that there is something to draw for."""
    for task in comparison.plan.tasks:
        if any(one.cell.task == task and one.scores for one in comparison.finished):
            plots: dict[str, Callable[[], str]] = {}
            if comparison.plan.k:
                plots[f"{task} against k"] = partial(shots_plot, comparison, task)
            for cost in X_AXES:
                plots[f"{task} against {cost}"] = partial(cost_plot, comparison, task, cost)
            plots[f"{task}: spread over seeds"] = partial(spread_plot, comparison, task)
            for name, plot in plots.items():
                try:
                    yield name, plot()
                except Exception as error:  # matplotlib may raise anything, and the tables count
                    LOG.warning("no picture of %s: %s: %s", name, type(error).__name__, error)


def _versions() -> str:
    facts = environment()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return f"{packages}; Python {facts['python']}, {facts['platform']}, commit {facts['commit']}"
