"""The picture of a run's convergence: losses and dev metrics against queries, and what was chosen."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bbt.drawing import new_figure
from bbt.runs.choice import Choice
from bbt.types import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS, METRIC, MANUAL, CHOSEN = "#2f86cc", "tab:orange", "tab:gray", "tab:red"


def convergence_figure(events: Sequence[Event], result: dict[str, Any], title: str, reason: bool = True) -> "Figure":
    """Draw the training loss of every candidate or step and the lowest so far, the best dev metric of each check, the
    manual prompt's as a line, and a star where the run has chosen; with `reason`, why stands above it."""
    choice = Choice.of(events, result)
    figure = new_figure(7.5, 4.8 if reason and choice.why else 4.4)
    left = figure.add_subplot()
    queries, losses, best = curve(events)
    if queries:
        left.plot(queries, losses, ".", markersize=3.5, alpha=0.5, color=LOSS, label="training loss")
        left.step(queries, best, where="post", color=LOSS, label="lowest so far")
    left.set_xlabel("train queries")
    left.set_ylabel("training loss", color=LOSS)
    right = left.twinx()
    _dev(right, choice)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    if title:
        figure.suptitle(title, fontsize="medium")
    if reason and choice.why:
        left.set_title("\n".join(textwrap.wrap(choice.why, 90)), fontsize="small", loc="left")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def _dev(axes: "Axes", choice: Choice) -> None:
    """Draw what dev has said, in percent."""
    best: dict[int, float] = {}
    for one in choice.judged:
        if one.who != "manual":
            best[one.train_queries] = max(one.verdict.metric, best.get(one.train_queries, 0.0))
    if best:
        axes.plot(
            list(best),
            [100 * metric for metric in best.values()],
            "o-",
            markersize=4,
            color=METRIC,
            label="dev metric, best of each check",
        )
    if choice.manual:
        metric = 100 * choice.manual.verdict.metric
        axes.axhline(metric, linestyle="--", linewidth=1.2, color=MANUAL, label=f"manual prompt on dev, {metric:.1f} %")
    chosen = f"chosen by dev {choice.by}: {choice.who}, {100 * choice.metric:.1f} %"
    axes.plot([choice.train_queries], [100 * choice.metric], "*", markersize=15, color=CHOSEN, label=chosen, zorder=5)
    axes.set_ylabel("dev metric (%)", color=METRIC)


def curve(events: Sequence[Event]) -> tuple[list[float], list[float], list[float]]:
    """Three lists over the candidates of finite loss, or over the steps of a training: each one's query number, its
    loss, and the lowest loss so far. The steps between two dev checks lie evenly over what they have cost."""
    queries, losses, best = list[float](), list[float](), list[float]()
    spent, lowest = 0, float("inf")
    for event in events:
        if event["event"] not in ("generation", "steps"):
            continue
        now, n = event["ledger"]["train_queries"], len(event["losses"])
        begun = now - n if event["event"] == "generation" else spent
        for i, loss in enumerate(event["losses"]):
            if loss is not None:
                lowest = min(lowest, loss)
                queries.append(begun + (now - begun) * (i + 1) / n)
                losses.append(loss)
                best.append(lowest)
        spent = now
    return queries, losses, best
