"""`bbt eval` and `bbt predict`: what a run has made, put to use."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bbt.cli.options import AsJson, Option, backend_options
from bbt.cli.printing import print_table
from bbt.errors import BbtError


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
    from bbt.predictor import Predictor
    from bbt.tasks.builtin import builtin_task
    from bbt.tasks.configured import test_examples

    predictor = Predictor(prompt, backend_options(option))
    own = builtin_task(task, predictor.backend.info.kind)
    examples = test_examples(own, data)
    metrics = predictor.evaluate(own, examples)
    if as_json:
        print(json.dumps({"task": task, "examples": len(examples), **metrics}))
    else:
        rows = [(name, f"{100 * value:.2f}") for name, value in metrics.items()]
        print_table(f"{prompt} on {task} ({len(examples)} test rows)", ("metric", "%"), rows)


def predict(
    prompt: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    option: Option = None,
) -> None:
    """Label texts with a saved prompt; one JSON object a text.

    Standard input holds plain lines, or JSON objects with "text" (and "text_pair").

    Example: bbt predict runs/quickstart "a joy from start to end"
    """
    from bbt.predictor import Predictor

    rows = [{"text": t} for t in text] if text else [_input_row(line) for line in sys.stdin if line.strip()]
    if not rows:
        raise BbtError("no texts: give them as arguments or on standard input, one a line.")
    texts, pairs = [row["text"] for row in rows], [row.get("text_pair", "") for row in rows]
    predictor = Predictor(prompt, backend_options(option))
    for row, answer in zip(rows, predictor.predict(texts, pairs), strict=True):
        print(json.dumps({**row, **answer}, ensure_ascii=False))


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
