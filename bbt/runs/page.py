"""A run becomes one HTML page that needs nothing else: what was chosen and why, tables, convergence, confusion, and the
rows that went most wrong or what was written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bbt.drawing import svg_text
from bbt.pages import picture, rendered
from bbt.runs.choice import Choice
from bbt.runs.convergence import convergence_figure
from bbt.runs.folder import OUTPUTS, RunFolder, read_result
from bbt.runs.report import cost_rows, result_rows, selected_line

N_WRONG = 20
"""How many of the wrong rows are shown."""
N_WRITTEN = 100
"""How many of the rows are shown whose answer is a text."""


@dataclass(frozen=True)
class Confusion:
    """How often each gold label got each answer on the test rows."""

    names: Sequence[str]
    """(K,) the labels' names."""
    rows: Sequence[tuple[str, Sequence[int]]]
    """For each gold label its name, and the counts (K,) of the answers, or (K + 1,) where rows have none."""
    has_none: bool
    """Whether a row has no answer, which the last count is for."""


def run_page(folder: RunFolder) -> str:
    """The text of a run's page.

    Raises:
        RunError: the run has not finished.
    """
    result, events = read_result(folder), folder.log.events
    start = next((event for event in events if event["event"] == "start"), {})
    records = _records(folder)
    labelled = records if records and "gold" in records[0] else []
    wrong = [record for record in labelled if record["label"] != record["gold"]]
    wrong.sort(key=lambda record: record["probabilities"][record["gold"]])
    head, *rows = result_rows(result)
    return rendered(
        "run.html",
        title=folder.path.name,
        result=result,
        template=start.get("template"),
        label_words=start.get("label_words", ()),
        selected=selected_line(result),
        why=Choice.of(events, result).why,
        head=head,
        rows=rows,
        costs=cost_rows(result),
        convergence=picture(svg_text(convergence_figure(events, result, title="", reason=False))),
        confusion=confusion(labelled),
        n_labelled=len(labelled),
        n_wrong=len(wrong),
        wrong=wrong[:N_WRONG],
        n_written=0 if labelled else len(records),
        written=[] if labelled else records[:N_WRITTEN],
        outputs=OUTPUTS,
        config=(folder.path / "config.yaml").read_text(encoding="utf-8"),
        versions={**start.get("packages", {}), "Python": start.get("python"), "commit": start.get("commit")},
        platform=start.get("platform"),
    )


def confusion(records: Sequence[dict[str, Any]]) -> Confusion | None:
    """Count the answers on labelled rows; None where there are no rows."""
    if not records:
        return None
    names = list(records[0]["probabilities"])
    has_none = any(record["label"] is None for record in records)
    columns: list[str | None] = [*names, *([None] if has_none else [])]
    counts = {gold: dict.fromkeys(columns, 0) for gold in names}
    for record in records:
        counts[record["gold"]][record["label"]] += 1
    return Confusion(names, [(gold, [row[name] for name in columns]) for gold, row in counts.items()], has_none)


def _records(folder: RunFolder) -> list[dict[str, Any]]:
    """The answers on the test rows; version 0.1 did not keep them."""
    path = folder.path / OUTPUTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
