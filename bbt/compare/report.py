"""A report is a comparison written down, beside its runs: Markdown, CSV, LaTeX and an HTML page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bbt.compare.comparison import Comparison
from bbt.compare.costs import as_csv, cost_tables, records
from bbt.compare.finished import finished
from bbt.compare.page import page
from bbt.compare.plan import Plan, cells
from bbt.compare.published import published_table
from bbt.compare.samples import sample_tables
from bbt.compare.scores import score_table
from bbt.compare.significance import paired_tables
from bbt.compare.table import Table
from bbt.compare.validation import validation_table
from bbt.compare.work import Failure
from bbt.files import write_atomically


@dataclass(frozen=True)
class Report:
    """A comparison as far as it has come, and how it is written down."""

    plan: Plan
    """What is compared."""
    runs: Path
    """The folder of the run folders, and of the report."""
    folds: int | None = None
    """The number of folds of a cross-validation (none: it is no cross-validation)."""
    failures: Sequence[Failure] = ()
    """The runs that have failed, and why."""
    comparison: Comparison = field(init=False)
    """What has finished, read from `runs`."""

    def __post_init__(self) -> None:
        wanted = cells(self.plan, self.folds)
        failed = {failure.cell for failure in self.failures}
        done = finished((cell for cell in wanted if cell not in failed), self.runs)
        object.__setattr__(self, "comparison", Comparison(self.plan, wanted, done))

    @property
    def tables(self) -> list[Table]:
        """The tables of scores, of published figures where the plan asks for them, of tests over seeds, of
        costs, and of what is written where the answers are texts."""
        if self.folds:
            return [validation_table(self.comparison, self.folds), *cost_tables(self.comparison)]
        published = [published_table(self.comparison)] if self.plan.published else []
        tests = paired_tables(self.comparison)
        samples = sample_tables(self.comparison, self.runs)
        return [score_table(self.comparison), *published, *tests, *cost_tables(self.comparison), *samples]

    @property
    def markdown(self) -> str:
        """Every table as Markdown."""
        return "\n".join(table.markdown() for table in self.tables)

    def write(self, plan_file: Path) -> list[Path]:
        """Write all formats, named for the plan, and return the files."""
        name = plan_file.stem + (f"-{self.folds}-fold" if self.folds else "")
        title, text = self.plan.title or plan_file.stem, plan_file.read_text(encoding="utf-8")
        texts: dict[str, Callable[[], str]] = {
            "md": lambda: self.markdown,
            "csv": lambda: as_csv(records(self.comparison)),
            "tex": lambda: "\n".join(table.latex() for table in self.tables),
            "html": lambda: page(title, self.comparison, self.tables, self.failures, text),
        }
        self.runs.mkdir(parents=True, exist_ok=True)
        for suffix, content in texts.items():
            write_atomically(self.runs / f"{name}.{suffix}", content())
        return [self.runs / f"{name}.{suffix}" for suffix in texts]
