"""Tables on standard output."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbt.runs.estimate import Estimate


def print_result(result: dict[str, Any]) -> None:
    """A run's two tables: how it tested, what it cost."""
    from bbt.runs.report import cost_rows, result_rows, selected_line

    head, *rows = result_rows(result)
    title = f"{result['task']} · {result['model']} · {result['label']} · seed {result['seed']}"
    print_table(f"{title} ({result['test_examples']} test rows)", head, rows)
    print(selected_line(result))
    if result.get("prompt_text"):
        print(f"prompt: {result['prompt_text']!r}")
    if result["test_truncated"]:
        print(f"{result['test_truncated']} test rows were longer than the model: their text was cut.")
    print_table("cost", ("", ""), cost_rows(result))


def print_estimate(estimate: "Estimate", as_json: bool) -> None:
    """What a run would cost."""
    from bbt.runs.report import estimate_rows

    if as_json:
        print(json.dumps(asdict(estimate)))
    else:
        print_table("estimate: at most", ("", ""), estimate_rows(estimate))


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """One table; as wide as it needs where nobody looks."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title, title_justify="left", show_header=any(head))
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
