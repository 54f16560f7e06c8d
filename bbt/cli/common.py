"""What several commands share is kept here: options, tables, and how warnings are shown."""

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from bbt.runs.estimate import Estimate

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the run folders.")]
Option = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A backend option, e.g. precision=fp32.")
]


def backend_options(pairs: list[str] | None) -> dict[str, Any]:
    """The backend options that the command line gives as key=value; values are YAML, as in a config."""
    from bbt.config import parse_override

    return dict(parse_override("--option", pair, "precision=fp32") for pair in pairs or ())


def print_result(result: dict[str, Any]) -> None:
    """Print a run's two tables: how it tested, and what it cost."""
    from bbt.runs.report import cost_rows, result_rows, selected_line

    head, *rows = result_rows(result)
    title = f"{result['task']} · {result['model']} · {result['label']} · seed {result['seed']}"
    print_table(f"{title} ({result['test_examples']} test rows)", head, rows)
    for name, signature in (result.get("signatures") or {}).items():
        print(f"{name}: {signature}")
    print(selected_line(result))
    if result.get("prompt_text"):
        print(f"prompt: {result['prompt_text']!r}")
    if result["test_truncated"]:
        print(f"{result['test_truncated']} test rows were longer than the model: their text was cut.")
    print_table("cost", ("", ""), cost_rows(result))


def print_estimate(estimate: "Estimate", as_json: bool) -> None:
    """Print what a run would cost, as a table or as JSON."""
    from bbt.runs.report import estimate_rows

    if as_json:
        print(json.dumps(asdict(estimate)))
    else:
        print_table("estimate: at most", ("", ""), estimate_rows(estimate))


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print one table; where standard output is no terminal it is as wide as it needs."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left", show_header=any(head))
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def complain(line: str) -> None:
    """Print one line on standard error."""
    print(" ".join(line.split()), file=sys.stderr)


def replace_what_cannot_be_encoded() -> None:
    """Let standard output and error print a question mark for what their encoding has no character for."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # another object may stand for the stream
            stream.reconfigure(errors="replace")


@contextmanager
def shown_warnings() -> Iterator[None]:
    """A context in which a warning, and what bbt logs as one, is a line on standard error."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        complain(f"warning: {message}")

    handler, loggers = _Lines(logging.WARNING), [logging.getLogger(room) for room in ("bbt", "backends")]
    with warnings.catch_warnings():
        warnings.showwarning = show
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


class _Lines(logging.Handler):
    """A log handler that writes a record as a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"warning: {record.getMessage()}")
