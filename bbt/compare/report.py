"""A comparison written down: Markdown, CSV, LaTeX and an HTML page, beside its runs."""

from pathlib import Path

from bbt.compare.comparison import Comparison
from bbt.compare.costs import as_csv, cost_tables, records
from bbt.compare.finished import finished
from bbt.compare.plan import Plan, cells
from bbt.compare.published import published_table
from bbt.compare.scores import score_table
from bbt.compare.table import Table
from bbt.compare.work import Failure
from bbt.records import write_atomically


def compared(plan: Plan, runs: Path, failures: list[Failure] | None = None) -> Comparison:
    """A plan with those of its runs that are done."""
    wanted = cells(plan)
    stale = {failure.cell for failure in failures or ()}
    return Comparison(plan, wanted, finished((cell for cell in wanted if cell not in stale), runs))


def all_tables(comparison: Comparison) -> list[Table]:
    """Scores, the published ones where the plan asks for them, and costs."""
    published = [published_table(comparison)] if comparison.plan.published else []
    return [score_table(comparison), *published, *cost_tables(comparison)]


def markdown(comparison: Comparison) -> str:
    """Every table."""
    return "\n".join(table.markdown() for table in all_tables(comparison))


def write_report(comparison: Comparison, runs: Path, name: str) -> list[Path]:
    """All formats; returns the files."""
    runs.mkdir(parents=True, exist_ok=True)
    texts = {
        "md": markdown(comparison),
        "csv": as_csv(records(comparison)),
        "tex": "\n".join(table.latex() for table in all_tables(comparison)),
    }
    for suffix, text in texts.items():
        write_atomically(runs / f"{name}.{suffix}", text)
    return [runs / f"{name}.{suffix}" for suffix in texts]
