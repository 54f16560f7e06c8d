"""`bbt ls` and `bbt show`: what there is, and what a run has done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from bbt.cli.common import AsJson, Runs, complain, print_result, print_table


def list_(
    what: Annotated[Literal["tasks", "models", "methods", "optimizers", "runs"], typer.Argument(help="What to list.")],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List built-in tasks, bundled models, methods, optimizers, or the runs made here."""
    listing: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "tasks": _tasks,
        "models": _models,
        "methods": _methods,
        "optimizers": _optimizers,
        "runs": lambda: _runs(runs),
    }
    rows = listing[what]()
    if as_json:
        print(json.dumps([{"name": name, "about": about} for name, about in rows]))
    else:
        print_table(what, ("name", "about"), rows)


def show(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    plot: Annotated[Path | None, typer.Option(help="Where the PNG goes (none: convergence.png in the run).")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's table and draw its convergence as PNG.

    Example: bbt show runs/quickstart
    """
    from bbt.runs.folder import RunFolder, read_result
    from bbt.runs.report import plot_convergence

    folder = RunFolder(run, hold=False)
    target = plot or run / "convergence.png"
    result = read_result(folder)
    if not as_json:
        print_result(result)
    drawn = None
    try:
        plot_convergence(folder.log, target, run.name)
        drawn = str(target)
    except Exception as error:  # whatever matplotlib or the disk says: the table counts
        complain(f"warning: no plot at {target}: {type(error).__name__}: {error}")
    if as_json:
        print(json.dumps({**result, "plot": drawn}))
    elif drawn:
        print(f"plot: {drawn}")


def _tasks() -> list[tuple[str, str]]:
    from bbt.tasks import GENERATION_TASKS, TASKS
    from bbt.tasks.data import bundled_tasks

    bundled = bundled_tasks()
    labelled = [(name, spec.title + (" (bundled)" if name in bundled else "")) for name, spec in TASKS.items()]
    return labelled + [(name, f"{spec.title} (generated)") for name, spec in GENERATION_TASKS.items()]


def _models() -> list[tuple[str, str]]:
    from backends.models import bundled_models

    return [(name, _first_line(folder / "README.md")) for name, folder in bundled_models().items()]


def _methods() -> list[tuple[str, str]]:
    from bbt.methods import METHODS

    return [(name, about) for name, (_, about) in METHODS.items()]


def _optimizers() -> list[tuple[str, str]]:
    from bbt.optimizers import OPTIMIZERS
    from bbt.optimizers.nevergrad import registry_names

    ours = [(name, about) for name, (_, about) in OPTIMIZERS.items()]
    return [*ours, *((name, "nevergrad") for name in registry_names())]


def _runs(runs: Path) -> list[tuple[str, str]]:
    from bbt.runs.folder import run_summaries

    return run_summaries(runs)


def _first_line(path: Path) -> str:
    """What stands under the heading of a model card."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line for line in lines if line and not line.startswith("#")), "")
