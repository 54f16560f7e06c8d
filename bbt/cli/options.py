"""Options that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the run folders.")]
Option = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="A backend option, e.g. precision=fp32.")
]


def backend_options(pairs: list[str] | None) -> dict[str, Any]:
    """Backend options of the command line; values are YAML, as in a config."""
    from bbt.config import parse_override

    return dict(parse_override("--option", pair, "precision=fp32") for pair in pairs or ())
