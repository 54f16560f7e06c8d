"""The pictures of a comparison are SVG text: dev and test against cost, the spread over seeds, learning curves over
k."""

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bbt.compare.comparison import Comparison
from bbt.compare.finished import Finished, Point
from bbt.drawing import new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = NDArray[np.float64]
X_AXES: dict[str, Callable[[Point], float]] = {
    "train queries": lambda point: point.queries,
    "seconds": lambda point: point.seconds,
}


def cost_plot(comparison: Comparison, task: str, cost: str) -> str:
    """A picture of dev and test against a cost. Lines are the best dev metric so far, the mean over seeds; points are
    the test metric at each budget's end, with its standard deviation over seeds."""
    figure, axes = _axes()
    named: set[str] = set()
    for label, runs in _rows(comparison, task).items():
        method, color = runs[0].cell.method, _color(comparison, runs[0].cell.method)
        curves = [[(X_AXES[cost](point), point.metric) for point in one.curve] for one in runs]
        if all(curves) and label == _longest(comparison, task, runs[0]):
            x, y = mean_steps(curves)
            axes.step(x, 100 * y, where="post", color=color, alpha=0.7, linewidth=1)
        test = [100 * one.first_score for one in runs]
        spent = mean(curve[-1][0] if curve else 0.0 for curve in curves)
        name = None if method in named else method
        axes.errorbar(spent, mean(test), _error(test), fmt="o", markersize=5, capsize=2, color=color, label=name)
        named.add(method)
    title = f"{task}: lines, dev (best so far, mean over seeds); points, test"
    axes.set(xlabel=cost, ylabel=f"{_metric(comparison, task)} (%)", title=title)
    if cost == "seconds":
        axes.set_xscale("symlog", linthresh=1.0)
    return _svg(figure)


def spread_plot(comparison: Comparison, task: str) -> str:
    """A picture of the spread over seeds: a line for each method, with a dot for each seed and a bar at the mean."""
    rows = _rows(comparison, task)
    figure, axes = _axes(height=0.8 + 0.28 * len(rows))
    for place, runs in enumerate(rows.values()):
        test = [100 * one.first_score for one in runs]
        axes.plot(test, [place] * len(test), "o", color=_color(comparison, runs[0].cell.method), alpha=0.6)
        axes.plot([mean(test)], [place], "|", color="#000000", markersize=14)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel=f"test {_metric(comparison, task)} (%)", title=f"{task}: a dot a seed, a bar at the mean")
    return _svg(figure, legend=False)


def shots_plot(comparison: Comparison, task: str) -> str:
    """A learning curve for each method (at a budget): the test metric against k, with its standard deviation over
    seeds."""
    figure, axes = _axes()
    of_task = [one for one in comparison.finished if one.cell.task == task]
    for method, budget in dict.fromkeys((one.cell.method, one.cell.budget) for one in of_task):
        runs = [one for one in of_task if (one.cell.method, one.cell.budget) == (method, budget)]
        by_k = {k: [100 * one.first_score for one in runs if one.cell.k == k] for k in comparison.plan.k}
        known = {k: values for k, values in by_k.items() if values}
        errors = [_error(values) for values in known.values()]
        at, means = f" at {budget}" if budget else "", [mean(values) for values in known.values()]
        color = _color(comparison, method)
        axes.errorbar(list(known), means, errors, marker="o", capsize=2, color=color, label=method + at)
    axes.set_xscale("log", base=2)
    axes.set_xticks(comparison.plan.k, [str(k) for k in comparison.plan.k])
    axes.set(xlabel="k, shots a class", ylabel=f"test {_metric(comparison, task)} (%)", title=f"{task}: learning curve")
    return _svg(figure)


def mean_steps(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[Curve, Curve]:
    """The mean of step functions (x, y), on all their steps, from where the last of them begins."""
    xs = [np.array([x for x, _ in curve]) for curve in curves]
    ys = [np.array([y for _, y in curve]) for curve in curves]
    begun = max(x[0] for x in xs)
    grid = np.unique(np.concatenate(xs))
    grid = grid[grid >= begun]
    values = [y[np.searchsorted(x, grid, side="right") - 1] for x, y in zip(xs, ys, strict=True)]
    return grid, np.mean(values, axis=0)


def _rows(comparison: Comparison, task: str) -> dict[str, list[Finished]]:
    """The comparison's rows on one task that have something to draw."""
    rows = {label: [one for one in runs if one.cell.task == task] for label, runs in comparison.rows.items()}
    return {label: runs for label, runs in rows.items() if any(one.scores for one in runs)}


def _longest(comparison: Comparison, task: str, one: Finished) -> str:
    """The row of the same method and k that has the largest budget: its curve holds the others'."""
    same = [
        other.cell
        for other in comparison.finished
        if (other.cell.task, other.cell.method, other.cell.k) == (task, one.cell.method, one.cell.k)
    ]
    return comparison.label(max(same, key=lambda cell: cell.budget or 0))


def _color(comparison: Comparison, method: str) -> Any:
    """The method's color, which is the same on every picture."""
    import matplotlib as mpl

    return mpl.colormaps["tab20"](list(comparison.plan.methods).index(method) % 20)


def _error(values: Sequence[float]) -> float:
    """The sample standard deviation of values; 0 for a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def _metric(comparison: Comparison, task: str) -> str:
    return next(metric for test, metric in comparison.columns if test == task)


def _axes(height: float = 4.5) -> "tuple[Figure, Axes]":
    figure = new_figure(9.0, height)
    return figure, figure.add_subplot()


def _svg(figure: "Figure", legend: bool = True) -> str:
    if legend:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return svg_text(figure)
