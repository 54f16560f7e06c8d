"""The command `bbt compare`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bbt.cli.common import complain

if TYPE_CHECKING:
    from bbt.compare.plan import Cell
    from bbt.compare.work import Executor, Failure


def compare(
    plan: Annotated[Path, typer.Argument(help="YAML file; see examples/plans/.")],
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs and the report (none: runs/PLAN).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time on this machine, a process each (none: 1).")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on a Ray cluster; auto: the one of RAY_ADDRESS, or a local one."),
    ] = None,
    devices: Annotated[
        str | None, typer.Option(help="Devices that runs have to themselves in turn, such as cuda:0,cuda:1.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validate on the k-shot rows; nothing is tested.")
    ] = None,
    pair: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Test two methods over the seeds.")
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="Run nothing: report what has finished.")] = False,
) -> None:
    """Run methods x tasks x seeds, and report scores and costs. Stop it anywhere: the same command goes on.

    Exit code 1 where a run has failed; the others are finished all the same.

    Example: bbt compare examples/plans/sst2.yaml --workers 2
    """
    from bbt.compare.plan import cells, load_plan
    from bbt.compare.report import Report
    from bbt.compare.significance import pair_in_words
    from bbt.compare.work import missing
    from bbt.errors import ConfigError

    if devices and cluster:
        raise ConfigError("--devices is for this machine alone; on a --cluster the plan's resources ask for GPUs.")
    if workers and cluster:
        raise ConfigError("--workers is for this machine alone; on a --cluster the plan's resources say how many fit.")
    loaded, folder = load_plan(plan), runs or Path("runs") / plan.stem
    todo, failures = missing(cells(loaded, folds), folder)
    if todo and not (table_only or pair):
        failures += _work(todo, folder, _executor(workers, cluster, devices), cluster)
    report = Report(loaded, folder, folds, failures)
    if pair:
        print("\n".join(pair_in_words(report.comparison, *pair)))
        return
    files = report.write(plan)
    print(report.markdown)
    done, wanted = len(report.comparison.finished), len(report.comparison.cells)
    print(f"{done} of {wanted} runs finished; report: {', '.join(map(str, files))}")
    for failure in failures:
        complain(f"failed: {failure.cell}: {failure.reason}")
    if failures:
        sys.exit(1)


def _executor(workers: int | None, cluster: str | None, devices: str | None) -> "Executor":
    """Make what runs the cells: a Ray cluster, or processes of this machine, as many as there are devices."""
    if cluster:
        from bbt.compare.cluster import RayCluster

        return RayCluster(cluster)
    from bbt.compare.devices import Devices
    from bbt.compare.processes import Processes

    names = devices.split(",") if devices else []
    return Processes(max(workers or 1, len(names)), Devices(names))


def _work(todo: "list[Cell]", folder: Path, executor: "Executor", cluster: str | None) -> "list[Failure]":
    """Run the cells under a progress bar; Ctrl-C says how to go on."""
    from contextlib import nullcontext

    from bbt.cli.compare_progress import Bars
    from bbt.cluster import joined
    from bbt.compare.work import Work

    try:
        with joined(cluster) if cluster else nullcontext(), Bars(len(todo)) as bars:
            return Work(folder, executor, bars).do(todo)
    except KeyboardInterrupt:
        complain("stopped; nothing is lost: the same command goes on.")
        sys.exit(130)
