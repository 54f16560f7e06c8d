"""What the methods have written on the first test rows, beside the rows' references."""

import json
from collections.abc import Iterator
from pathlib import Path

from bbt.compare.comparison import Comparison
from bbt.compare.finished import Finished
from bbt.compare.table import NOTHING, Table
from bbt.runs.folder import OUTPUTS

N_ROWS = 3
"""The number of rows that are shown of each task."""
N_CHARACTERS = 160
"""The most characters that are shown of a text."""


def sample_tables(comparison: Comparison, runs: Path) -> list[Table]:
    """The tables of outputs, one for each task whose answer is a text, of the first seed that has finished."""
    return [table for task in comparison.plan.tasks for table in _tables_of(comparison, runs, task)]


def _tables_of(comparison: Comparison, runs: Path, task: str) -> Iterator[Table]:
    """Yield the table of a task, if it has outputs."""
    seed = min((one.cell.seed for one in comparison.finished if one.cell.task == task), default=0)
    found = {label: _outputs(of_row, runs, task, seed) for label, of_row in comparison.rows.items()}
    written = {label: outputs for label, outputs in found.items() if outputs}
    if written:
        first = next(iter(written.values()))
        rows = [
            ("source ends in", *(_end(" ".join([row["source"], row.get("source_pair", "")])) for row in first)),
            ("reference", *(_begin(row["references"][0]) for row in first)),
            *((label, *(_begin(row["output"]) for row in outputs)) for label, outputs in written.items()),
        ]
        head = ("", *(f"test row {i + 1}" for i in range(len(first))))
        yield Table(f"What is written on {task}, seed {seed}", head, tuple(rows))


def _outputs(finished: list[Finished], runs: Path, task: str, seed: int) -> list[dict[str, str]]:
    """The first records of a run's outputs, if they are texts beside references; none where labels are the answer."""
    for one in finished:
        file = one.cell.folder(runs) / OUTPUTS
        if (one.cell.task, one.cell.seed) == (task, seed) and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()[:N_ROWS]
            return [record for record in map(json.loads, lines) if "references" in record]
    return []


def _begin(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split()) or NOTHING
    return line if len(line) <= N_CHARACTERS else line[: N_CHARACTERS - 1] + "…"


def _end(text: str) -> str:
    """The end of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= N_CHARACTERS else "…" + line[-N_CHARACTERS + 1 :]
