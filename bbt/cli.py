"""The `bbt` command. Errors are one line and exit code 2; tables go to standard output, progress to error."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bbt.errors import BbtError

if TYPE_CHECKING:
    from bbt.api import Observer, Outcome
    from bbt.tuner import Progress

app = typer.Typer(
    help="Tune prompts of language models by their forward pass alone.\n\nStart with: bbt run configs/quickstart.yaml",
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the run folders.")]
Option = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A backend option, e.g. precision=fp32.")
]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. budget.queries=500.")
    ] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a prompt as a config says, in a new run folder.

    Example: bbt run configs/quickstart.yaml --set seed=1 --set budget.queries=500
    """
    from bbt import api
    from bbt.config import load_config

    settings = load_config(config, set_ or ())
    with _progress_bar() as observer:
        outcome = api.run(settings, runs, observer)
    _print_outcome(outcome, as_json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    budget: Annotated[int | None, typer.Option(help="Extend the budget to this many queries.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a stopped run, bit for bit as if it had never stopped, or extend a finished one.

    Example: bbt resume runs/quickstart --budget 2000
    """
    from bbt import api

    with _progress_bar() as observer:
        outcome = api.resume(run, budget, observer)
    _print_outcome(outcome, as_json)


@app.command(name="eval")
def evaluate(
    prompt: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    task: Annotated[str, typer.Option(help="Built-in task that gives the test rows (bbt ls tasks).")],
    data: Annotated[Path | None, typer.Option(help="Your own test file (csv, tsv, jsonl) for that task.")] = None,
    option: Option = None,
    as_json: AsJson = False,
) -> None:
    """Test a saved prompt on a task's test set, bundled or your own file.

    Example: bbt eval runs/quickstart --task sst2
    """
    from bbt.api import Predictor
    from bbt.problem import test_examples
    from bbt.tasks.builtin import builtin_task

    predictor = Predictor(prompt, _options(option))
    own = builtin_task(task, predictor.backend.info.kind)
    examples = test_examples(own, data)
    metrics = predictor.evaluate(own, examples)
    if as_json:
        print(json.dumps({"task": task, "examples": len(examples), **metrics}))
    else:
        rows = [(name, f"{100 * value:.2f}") for name, value in metrics.items()]
        _print_table(f"{prompt} on {task} ({len(examples)} test rows)", ("metric", "%"), rows)


@app.command()
def predict(
    prompt: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    option: Option = None,
) -> None:
    """Label texts with a saved prompt; one JSON object a text.

    Standard input holds plain lines, or JSON objects with "text" (and "text_pair").

    Example: bbt predict runs/quickstart "a joy from start to end"
    """
    from bbt.api import Predictor

    rows = [{"text": t} for t in text] if text else [_input_row(line) for line in sys.stdin if line.strip()]
    if not rows:
        raise BbtError("no texts: give them as arguments or on standard input, one a line.")
    texts, pairs = [row["text"] for row in rows], [row.get("text_pair", "") for row in rows]
    predictor = Predictor(prompt, _options(option))
    for row, answer in zip(rows, predictor.predict(texts, pairs), strict=True):
        print(json.dumps({**row, **answer}, ensure_ascii=False))


@app.command(name="ls")
def list_(
    what: Annotated[Literal["tasks", "models", "optimizers", "runs"], typer.Argument(help="What to list.")],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List built-in tasks, bundled models, optimizers, or the runs made here."""
    listing: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "tasks": _tasks,
        "models": _models,
        "optimizers": _optimizers,
        "runs": lambda: _runs(runs),
    }
    rows = listing[what]()
    if as_json:
        print(json.dumps([{"name": name, "about": about} for name, about in rows]))
    else:
        _print_table(what, ("name", "about"), rows)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    plot: Annotated[Path | None, typer.Option(help="Where the PNG goes (none: convergence.png in the run).")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's table and draw its convergence as PNG.

    Example: bbt show runs/quickstart
    """
    from bbt.records import RunFolder, read_result
    from bbt.report import plot_convergence

    folder = RunFolder(run, hold=False)
    target = plot or run / "convergence.png"
    plot_convergence(folder.log, target, run.name)
    result = read_result(folder)
    if as_json:
        print(json.dumps({**result, "plot": str(target)}))
    else:
        _print_result(result)
        print(f"plot: {target}")


def main() -> None:
    """Entry point: errors meant for people become one line and exit code 2."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except (BbtError, OSError, typer.BadParameter.__base__) as error:  # type: ignore[misc]
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"bbt: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)


@contextmanager
def _progress_bar() -> Iterator["Observer"]:
    """A progress bar on a terminal, nothing elsewhere; Ctrl-C says how to go on."""
    from tqdm import tqdm

    from bbt.api import Observer

    class Bar(Observer):
        folder: Path | None = None
        interrupted = False
        bar = tqdm(unit="query", disable=None, file=sys.stderr, dynamic_ncols=True)

        def started(self, folder: Path | None, budget: int) -> None:
            self.folder, self.bar.total = folder, budget
            if not self.bar.disable:
                self.bar.write(f"run folder: {folder}", file=sys.stderr)

        def interrupt(self, *_: object) -> None:
            self.interrupted = True
            raise KeyboardInterrupt

        def progressed(self, progress: "Progress") -> None:
            if self.interrupted:  # some libraries swallow it while they are imported
                raise KeyboardInterrupt
            best = f"{100 * progress.best.verdict.metric:.1f}" if progress.best else "-"
            self.bar.set_postfix_str(f"train loss {progress.train_loss:.3f}, best dev {best}", refresh=False)
            self.bar.update(progress.train_queries - self.bar.n)

    observer = Bar()
    before = signal.signal(signal.SIGINT, observer.interrupt)
    try:
        yield observer
    except KeyboardInterrupt:
        observer.bar.close()
        print(f"stopped; nothing is lost: bbt resume {observer.folder or 'RUN'} goes on.", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)
        observer.bar.close()


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print(json.dumps({**outcome.result, "run": str(outcome.folder)}))
        return
    _print_result(outcome.result)
    print(f"run folder: {outcome.folder}")


def _print_result(result: dict[str, Any]) -> None:
    from bbt.report import cost_rows, result_rows, selected_line

    head, *rows = result_rows(result)
    title = f"{result['task']} · {result['model']} · {result['optimizer']} · seed {result['seed']}"
    _print_table(f"{title} ({result['test_examples']} test rows)", head, rows)
    print(selected_line(result))
    if result["test_truncated"]:
        print(f"{result['test_truncated']} test rows were longer than the model: their text was cut.")
    _print_table("cost", ("", ""), cost_rows(result))


def _print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left", show_header=any(head))
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def _input_row(line: str) -> dict[str, str]:
    """A line of standard input: plain text, or a JSON object with a text."""
    if not line.lstrip().startswith("{"):
        return {"text": line.rstrip("\n")}
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BbtError(f"standard input: not JSON: {line.strip()[:60]!r}: {error}") from error
    if not isinstance(row.get("text"), str):
        raise BbtError(f'standard input: no string "text" in {line.strip()[:60]!r}.')
    return {key: str(row[key]) for key in ("text", "text_pair") if key in row}


def _options(pairs: list[str] | None) -> dict[str, Any]:
    """Backend options of the command line; values are YAML, as in a config."""
    from bbt.config import parse_override

    return dict(parse_override("--option", pair, "precision=fp32") for pair in pairs or ())


def _tasks() -> list[tuple[str, str]]:
    from bbt.tasks import TASKS
    from bbt.tasks.data import bundled_tasks

    bundled = bundled_tasks()
    return [(name, spec.title + (" (bundled)" if name in bundled else "")) for name, spec in TASKS.items()]


def _models() -> list[tuple[str, str]]:
    from backends.models import bundled_models

    return [(name, _first_line(folder / "README.md")) for name, folder in bundled_models().items()]


def _optimizers() -> list[tuple[str, str]]:
    from bbt.optimizers import OPTIMIZERS
    from bbt.optimizers.nevergrad import registry_names

    ours = [(name, about) for name, (_, about) in OPTIMIZERS.items()]
    return [*ours, *((name, "nevergrad") for name in registry_names())]


def _runs(runs: Path) -> list[tuple[str, str]]:
    from bbt.records import run_summaries

    return run_summaries(runs)


def _first_line(path: Path) -> str:
    """What stands under the heading of a model card."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line for line in lines if line and not line.startswith("#")), "")


if __name__ == "__main__":
    main()
