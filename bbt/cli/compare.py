"""`bbt compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bbt.compare.plan import Cell
    from bbt.compare.work import Failure


def compare(
    plan: Annotated[Path, typer.Argument(help="YAML file; see examples/plans/.")],
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs and the report (none: runs/PLAN).")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, one thread each.")] = 1,
    table_only: Annotated[bool, typer.Option("--table-only", help="Run nothing: report what has finished.")] = False,
) -> None:
    """Run methods x tasks x seeds, and report scores and costs. Stop it anywhere: the same command goes on.

    Exit code 1 where a run has failed; the others are finished all the same.

    Example: bbt compare examples/plans/sst2.yaml --workers 2
    """
    from bbt.compare.plan import cells, load_plan
    from bbt.compare.report import compared, markdown, write_report
    from bbt.compare.work import missing

    loaded, folder = load_plan(plan), runs or Path("runs") / plan.stem
    todo, failures = missing(cells(loaded), folder)
    comparison_failures = list(failures)
    if todo and not table_only:
        failures += _work(todo, folder, workers)
    comparison = compared(loaded, folder, comparison_failures)
    files = write_report(comparison, folder, plan.stem)
    print(markdown(comparison))
    print(f"{len(comparison.finished)} of {len(comparison.cells)} runs finished; report: {', '.join(map(str, files))}")
    for failure in failures:
        print(f"failed: {failure.cell}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _work(todo: "list[Cell]", folder: Path, n_workers: int) -> "list[Failure]":
    """Run them under a progress bar; Ctrl-C says how to go on."""
    from bbt.cli.compare_progress import Bars
    from bbt.compare.work import Work

    try:
        with Bars(len(todo)) as bars:
            return Work(folder, n_workers, bars).do(todo)
    except KeyboardInterrupt:
        print("stopped; nothing is lost: the same command goes on.", file=sys.stderr)
        sys.exit(130)
