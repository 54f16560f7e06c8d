"""The commands `bbt run` and `bbt resume`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bbt.cli.common import AsJson, Runs, print_estimate, print_result
from bbt.cli.progress import progress_bar

if TYPE_CHECKING:
    from bbt.api import Outcome


def run(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. budget.queries=500.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate the cost; calls nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune a prompt as a config says, in a new run folder.

    Example: bbt run configs/quickstart.yaml --set seed=1 --set budget.queries=500
    """
    from bbt import api
    from bbt.config import load_config

    settings = load_config(config, set_ or ())
    if dry_run:
        print_estimate(api.estimate(settings, runs), as_json)
        return
    with progress_bar() as observer:
        outcome = api.run(settings, runs, observer)
    _print_outcome(outcome, as_json)


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    budget: Annotated[int | None, typer.Option(help="Extend the budget to this many queries.")] = None,
    ceiling: Annotated[float | None, typer.Option(help="Raise the price ceiling to this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a stopped run, bit for bit as if it had never stopped, or extend a finished one.

    Example: bbt resume runs/quickstart --budget 2000
    """
    from bbt import api

    with progress_bar() as observer:
        outcome = api.resume(run, budget, observer, ceiling)
    _print_outcome(outcome, as_json)


def _print_outcome(outcome: "Outcome", as_json: bool) -> None:
    if as_json:
        print(json.dumps({**outcome.result, "run": str(outcome.folder)}))
        return
    print_result(outcome.result)
    if "perplexity" in outcome.result and outcome.folder:
        from bbt.runs.folder import OUTPUTS

        print(f"texts on the test rows: {outcome.folder / OUTPUTS}")
    print(f"run folder: {outcome.folder}")
