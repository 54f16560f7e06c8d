"""The published figures of RoBERTa-large stand in a table of their own, and are never mixed with ours."""

import csv
from importlib.resources import files

from bbt.compare.comparison import Comparison
from bbt.compare.finished import ARROW
from bbt.compare.table import NOTHING, Table

TITLE = "As published (%): RoBERTa-large, 16-shot, mean over 3 splits; another model, not run here"
SOURCE = (
    "Sun et al. 2022, Black-Box Tuning for Language-Model-as-a-Service (arXiv 2201.03514); BBTv2: Sun et al. 2022 "
    "(arXiv 2205.11200); BBT-RGB: Sun et al. 2023 (arXiv 2305.08088). Over 100 seeds the authors found a mean of 88.0 "
    "for BBT on SST-2."
)


def published_table(comparison: Comparison) -> Table:
    """The papers' figures in the comparison's own columns."""
    columns = [column for column in comparison.columns if ARROW not in column[0]]
    names = {cell.task: cell.config.task.name for cell in comparison.cells}
    text = (files("bbt.compare") / "published.csv").read_text(encoding="utf-8")
    rows = [
        (record["method"], *(record.get(f"{names[test]} {metric}") or NOTHING for test, metric in columns))
        for record in csv.DictReader(text.splitlines())
    ]
    head = ("published method", *(f"{test} {metric}" for test, metric in columns))
    return Table(TITLE, head, tuple(rows), (SOURCE,))
