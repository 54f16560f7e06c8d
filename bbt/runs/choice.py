"""Why a run has kept what it has kept, read back from its log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bbt.scoring.judge import Verdict, recorded_verdicts
from bbt.types import Event


@dataclass(frozen=True)
class Judged:
    """A state of the method that dev has judged."""

    who: str
    """Which one, as in the log: manual, untuned, mean, train best 1, step 10, ..."""
    verdict: Verdict
    """How dev has judged it."""
    train_queries: int
    """The train queries that had been spent by then."""


@dataclass(frozen=True)
class Choice:
    """All that dev has judged in a run, and what was kept of it."""

    judged: Sequence[Judged]
    """What was judged, in the log's order; the manual prompt is among it where it competed."""
    by: str
    """What dev judges by: `metric` or `loss`."""
    margin: float
    """The standard errors by which the manual prompt must be beaten."""
    who: str
    """What was kept."""
    train_queries: int
    """The train queries that had been spent when it was judged."""
    metric: float
    """Its dev metric, in [0, 1]."""

    @classmethod
    def of(cls, events: Sequence[Event], result: dict[str, Any]) -> "Choice":
        """Read the choice of a run with this log and result."""
        starts = [event for event in events if event["event"] == "start"]
        selection = starts[0].get("settings", {}).get("selection", {}) if starts else {}
        chosen = result["selected"]
        judged = [
            Judged(who, verdict, event["ledger"]["train_queries"])
            for event in events
            if event["event"] == "dev"
            for who, verdict in zip(event["names"], recorded_verdicts(event), strict=True)
        ]
        by, margin = selection.get("by", "metric"), selection.get("margin", 0.0)
        return cls(judged, by, margin, chosen["who"], chosen["train_queries"], chosen["metric"])

    @property
    def manual(self) -> Judged | None:
        """The manual prompt, where dev has judged it."""
        return next((one for one in self.judged if one.who == "manual"), None)

    @property
    def best(self) -> Judged | None:
        """The best of all but the manual prompt, the first of equals."""
        found: Judged | None = None
        for one in self.judged:
            if one.who != "manual" and (found is None or one.verdict.better_than(found.verdict, self.by)):
                found = one
        return found

    @property
    def why(self) -> str:
        """The reason in a sentence; empty where the log does not tell it."""
        best, manual = self.best, self.manual
        if best is None:
            return "Only the manual prompt was judged." if manual else ""
        superlative = "highest" if self.by == "metric" else "lowest"
        found = f"of {self._n} judged, {_named(best)} has the {superlative} dev {self.by}"
        if self.who == "manual" and manual:
            return f"The manual prompt stays: {found}, and is not clearly better: {self._lead(best, manual)}."
        if (best.who, best.train_queries) != (self.who, self.train_queries):
            return ""  # a method that keeps something else than the best, as an ensemble does
        ahead = f", and is clearly better than the manual prompt: {self._lead(best, manual)}" if manual else ""
        return f"Chosen: {found}{ahead}."

    @property
    def _n(self) -> int:
        return sum(one.who != "manual" for one in self.judged)

    def _lead(self, best: Judged, manual: Judged) -> str:
        """How far the best is ahead of the manual prompt, in words."""
        by_metric = self.by == "metric" or not best.verdict.row_losses
        a, b = best.verdict, manual.verdict
        figures = f"metric {100 * a.metric:.1f} against {100 * b.metric:.1f}"
        if not by_metric:
            figures = f"loss {a.loss:.3f} against {b.loss:.3f}"
        if not manual.verdict.row_losses:  # version 0.1 recorded no rows
            return figures
        lead, error = a.lead(b, self.by, len(manual.verdict.row_losses))
        if lead <= 0:
            return figures
        ahead = f", {lead / error:.1f} standard errors ahead" if error else ""
        return f"{figures}{ahead}, where it takes more than {self.margin:g}"


def _named(one: Judged) -> str:
    """A state in words, with when it was judged."""
    return f"{one.who} (query {one.train_queries:,})"
