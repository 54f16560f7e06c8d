"""The commands `bbt ls` and `bbt show` say what there is, and what a run has done."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from bbt.cli.common import AsJson, Runs, complain, print_result, print_table

if TYPE_CHECKING:
    from bbt.names import Table
    from bbt.runs.folder import RunFolder

What: TypeAlias = Literal[
    "tasks", "models", "methods", "optimizers", "losses", "metrics", "observers", "backends", "runs"
]


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List built-in parts, bundled models, or the runs made here.

    Wherever a config names a part, module:Name of your own will do, too; examples/extend/ holds one of each.
    """
    listing: dict[What, Callable[[], list[tuple[str, str]]]] = {
        "tasks": _tasks,
        "models": _models,
        "methods": lambda: _parts("bbt.methods", "METHODS"),
        "optimizers": _optimizers,
        "losses": lambda: _parts("bbt.settings", "LOSSES"),
        "metrics": lambda: [*_parts("bbt.tasks", "METRICS"), *_parts("bbt.tasks.sequence_metrics", "SEQUENCE_METRICS")],
        "observers": lambda: _parts("bbt.runs.observer", "OBSERVERS"),
        "backends": lambda: _parts("backends", "BACKENDS"),
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
    html: Annotated[bool, typer.Option("--html", help="Write report.html in the run, a page of all there is.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a run's table and draw its convergence as PNG, or write all of it as one HTML page.

    Example: bbt show runs/quickstart --html
    """
    from bbt.runs.convergence import convergence_figure
    from bbt.runs.folder import RunFolder, read_result

    folder = RunFolder(run, hold=False)
    target = plot or run / "convergence.png"
    result = read_result(folder)
    if not as_json:
        print_result(result)
    drawn = None
    try:
        convergence_figure(folder.log.events, result, run.name).savefig(target, dpi=150)
        drawn = str(target)
    except Exception as error:  # the picture may fail in any way; the table counts
        complain(f"warning: no plot at {target}: {type(error).__name__}: {error}")
    page = str(_write_page(folder)) if html else None
    if as_json:
        print(json.dumps({**result, "plot": drawn, "page": page}))
        return
    for what, path in (("plot", drawn), ("page", page)):
        if path:
            print(f"{what}: {path}")


def _write_page(folder: "RunFolder") -> Path:
    from bbt.files import write_atomically
    from bbt.runs.page import run_page

    path = folder.path / "report.html"
    write_atomically(path, run_page(folder))
    return path


def _tasks() -> list[tuple[str, str]]:
    from bbt.tasks import GENERATION_TASKS, TASKS
    from bbt.tasks.data import bundled_tasks

    bundled = bundled_tasks()
    labelled = [(name, spec.title + (" (bundled)" if name in bundled else "")) for name, spec in TASKS.items()]
    return labelled + [(name, f"{spec.title} (generated)") for name, spec in GENERATION_TASKS.items()]


def _models() -> list[tuple[str, str]]:
    from backends.models import bundled_models

    return [(name, _first_line(folder / "README.md")) for name, folder in bundled_models().items()]


def _optimizers() -> list[tuple[str, str]]:
    from bbt.optimizers import OPTIMIZERS
    from bbt.optimizers.nevergrad import registry_names

    return [*_named(OPTIMIZERS), *((name, "nevergrad") for name in registry_names())]


def _parts(module: str, table: str) -> list[tuple[str, str]]:
    """The parts in the table of that name of a module, which is imported only for them."""
    return _named(getattr(import_module(module), table))


def _named(table: "Table") -> list[tuple[str, str]]:
    return [(name, about) for name, (_, about) in table.items()]


def _runs(runs: Path) -> list[tuple[str, str]]:
    from bbt.runs.folder import run_summaries

    return run_summaries(runs)


def _first_line(path: Path) -> str:
    """The line under the heading of a model card."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line for line in lines if line and not line.startswith("#")), "")
