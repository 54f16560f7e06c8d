"""The `bbt` command. Errors are one line and exit code 2; tables go to standard output, progress to error.

A new command is a file here, imported below; what it needs is imported when it is called, so that `bbt --help` is fast.
"""

import os
import sys
from collections.abc import Callable

import typer

from bbt.cli import bench, compare, look, run, serve, use
from bbt.cli.common import complain, replace_what_cannot_be_encoded, shown_warnings
from bbt.errors import BbtError

app = typer.Typer(
    help="Tune prompts of language models by their forward pass alone.\n\nStart with: bbt run configs/quickstart.yaml",
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "resume": run.resume,
    "compare": compare.compare,
    "eval": use.evaluate,
    "predict": use.predict,
    "export": use.export,
    "serve": serve.serve,
    "ls": look.list_,
    "show": look.show,
    "bench": bench.bench,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Entry point: errors meant for people become one line and exit code 2."""
    replace_what_cannot_be_encoded()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # module:Name in a config may lie in the folder that the user stands in
    try:
        with shown_warnings():
            sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except (BbtError, OSError, typer.BadParameter.__base__) as error:  # type: ignore[misc]
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        complain(f"bbt: {message}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
