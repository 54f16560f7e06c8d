"""A comparison as one HTML page that needs nothing else: tables, pictures, the plan, what failed."""

import logging
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape

from bbt.compare.comparison import Comparison
from bbt.compare.plots import X_AXES, cost_plot, shots_plot, spread_plot
from bbt.compare.table import Table
from bbt.compare.work import Failure
from bbt.runs.environment import environment

LOG = logging.getLogger(__name__)
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } ul, pre { color: #444; font-size: 13px; }
"""


def page(title: str, comparison: Comparison, tables: Sequence[Table], failures: Sequence[Failure], plan: str) -> str:
    """The whole page; `plan` is the plan's own text."""
    done = f"{len(comparison.finished)} of {len(comparison.cells)} runs finished."
    body = [
        f"<h1>{escape(title)}</h1><p>{done}</p>",
        _failed(failures),
        *(table.html() for table in tables),
        *(
            f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="{_inline(svg)}">'
            for name, svg in _plots(comparison)
        ),
        f"<h2>The plan</h2><pre>{escape(plan)}</pre>",
        f"<h2>Reported with</h2><pre>{escape(_versions())}</pre>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _plots(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Name and SVG of each picture that there is something for."""
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
                except Exception as error:  # whatever matplotlib says: the tables count
                    LOG.warning("no picture of %s: %s: %s", name, type(error).__name__, error)


def _inline(svg: str) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()


def _failed(failures: Sequence[Failure]) -> str:
    lines = "".join(f"<li>{escape(str(failure.cell))}: {escape(failure.reason)}</li>" for failure in failures)
    return f"<h2>Failed</h2><ul>{lines}</ul>" if lines else ""


def _versions() -> str:
    facts = environment()
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return f"{packages}\nPython {facts['python']}, {facts['platform']}, commit {facts['commit']}"
