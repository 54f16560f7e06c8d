"""`bbt eval`, `bbt predict` and `bbt export`: what a run has made, put to use."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bbt.cli.common import AsJson, Option, backend_options, print_table
from bbt.errors import BbtError, ConfigError, DataError

if TYPE_CHECKING:
    from bbt.predictor import Predictor
    from bbt.tasks import Columns, Example, GenerationTask, Task
    from bbt.tasks.records import Placed

ROWS_AT_ONCE = 128  # rows that `bbt predict` reads before it answers


def evaluate(
    prompt: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    task: Annotated[
        str | None, typer.Option(help="Built-in task that gives the test rows (bbt ls tasks); without one, the run's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your own test file (csv, tsv, jsonl, parquet; .gz) for that task.")
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write each row's prediction there, as jsonl.")] = None,
    option: Option = None,
    as_json: AsJson = False,
) -> None:
    """Test a saved prompt on its run's own test set, another task's, or your own file.

    Without --task the rows are read as the run's config says: its columns, labels and label names.

    Example: bbt eval runs/quickstart --predictions answers.jsonl
    """
    from bbt.files import write_lines
    from bbt.predictor import Predictor
    from bbt.tasks import GenerationTask
    from bbt.tasks.metrics import confusion, per_class
    from bbt.tasks.task import labels_of

    if predictions and not predictions.parent.is_dir():
        raise BbtError(f"--predictions {predictions}: no folder {predictions.parent}.")
    predictor = Predictor(prompt, backend_options(option))
    asked, examples = _rows(predictor, prompt, task, data)
    if isinstance(asked, GenerationTask):
        _evaluate_texts(predictor, prompt, asked, examples, predictions, as_json)
        return
    own = predictor.worded(asked)
    answers = predictor.answers(examples)
    gold, names = labels_of(examples), own.label_names
    metrics = own.evaluate(gold, answers.labels)
    classes = dict(zip(names, per_class(gold, answers.labels, len(names)), strict=True))
    counts = confusion(gold, answers.labels, len(names)).tolist()
    if predictions:
        write_lines(predictions, answers.beside(examples, names))
    if as_json:
        facts = {"task": own.name, "examples": len(examples), **metrics, "per_class": classes, "confusion": counts}
        print(json.dumps(facts))
        return
    rows = [(name, f"{100 * value:.2f}") for name, value in metrics.items()]
    print_table(f"{prompt} on {own.name} ({len(examples)} test rows)", ("metric", "%"), rows)
    scores = [
        (name, *(f"{100 * one[key]:.2f}" for key in ("precision", "recall", "f1")), str(one["rows"]))
        for name, one in classes.items()
    ]
    print_table("classes", ("label", "precision %", "recall %", "F1 %", "rows"), scores)
    table = [(name, *map(str, row)) for name, row in zip(names, counts, strict=True)]
    print_table("confusion: rows by label (down) and prediction (across)", ("", *names, "none"), table)


def _evaluate_texts(
    predictor: "Predictor",
    prompt: Path,
    task: "GenerationTask",
    examples: "Sequence[Example]",
    predictions: Path | None,
    as_json: bool,
) -> None:
    """How it writes: metrics, and each row's output beside its references."""
    from bbt.experiment.tested_texts import outputs
    from bbt.files import write_lines
    from bbt.tasks.generation import references
    from bbt.tasks.sequence_metrics import signatures

    metrics, texts = predictor.written(task, examples)
    if predictions:
        write_lines(predictions, outputs(examples, texts))
    found = signatures(task.metrics, references(examples))
    if as_json:
        print(json.dumps({"task": task.name, "examples": len(examples), **metrics, "signatures": found}))
        return
    rows = [(f"{name} %", f"{100 * metrics[name]:.2f}") for name in task.metrics]
    if "perplexity" in metrics:  # an API of text alone tells none
        rows.append(("perplexity", f"{metrics['perplexity']:.2f}"))
    print_table(f"{prompt} on {task.name} ({len(examples)} test rows)", ("metric", ""), rows)
    for name, signature in found.items():
        print(f"{name}: {signature}")


def export(
    run: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    to: Annotated[
        Literal["peft", "transformers", "vllm", "safetensors"], typer.Option(help="Who is to use it.")
    ] = "peft",
    option: Option = None,
) -> None:
    """Carry a tuned prompt away: files that are used without bbt, and a README.md with the lines that use them.

    Example: bbt export runs/quickstart --to peft carried
    """
    from bbt.export import export as write_export
    from bbt.predictor import Predictor

    predictor = Predictor(run, backend_options(option))
    soft = write_export(predictor.classifier, predictor.backend, to, folder)
    said = "" if soft else "no soft prompt to deploy: the manual prompt was selected; its text and class biases are in "
    print(f"{said}{folder}")


def _rows(
    predictor: "Predictor", prompt: Path, name: str | None, data: Path | None
) -> "tuple[Task, Sequence[Example]]":
    """The task that is asked, and its test rows."""
    from bbt.tasks.builtin import builtin_task
    from bbt.tasks.configured import limited, make_task, own_test, test_examples

    config = predictor.config
    if predictor.generates and (config is None or name is not None):
        raise ConfigError(f"{prompt} answers with texts: give its run folder, and --data for a file of other rows.")
    if name is not None:
        task = builtin_task(name, predictor.backend.info.kind)
        predictor.worded(task)  # refuses a task with other labels before a row is read
        return task, test_examples(task, data)
    if config is None and data is None:
        raise ConfigError(f"{prompt} is a prompt without its run's config: give --task, --data or the run folder.")
    if config is None:
        return predictor.task, test_examples(predictor.task, data)
    task = make_task(config.task, predictor.backend.info.kind)
    examples = own_test(config.data, task, data)
    return task, examples if data else limited(examples, config.evaluation.rows or None)


def predict(
    prompt: Annotated[Path, typer.Argument(help="Run folder or prompt.safetensors.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A csv, tsv, jsonl or parquet file of rows (.gz, too) instead of texts.")
    ] = None,
    option: Option = None,
) -> None:
    """Label texts with a saved prompt, or write the answers; one JSON object a text, a blank line for a blank line.

    A file's rows keep all their columns; texts stand in the columns that the run was trained with, or in "text" and
    "text_pair". Where a row has a column "label" or "probabilities" already, the answer's is called
    "predicted_label" or "predicted_probabilities". Standard input holds plain lines, or JSON objects with "text".

    Example: bbt predict runs/quickstart "a joy from start to end"
    """
    from bbt.predictor import Predictor
    from bbt.tasks.records import read_records

    if text and file:
        raise BbtError("give texts or --file, not both.")
    if file and not file.is_file():
        raise DataError(f"no data file {file}.")
    stream = iter([(f"text {i}", {"text": t}) for i, t in enumerate(text, start=1)] if text else _input_rows())
    first = list(islice(stream, 1)) if not file else []
    if not (file or first):
        raise BbtError("no texts: give them as arguments, with --file or on standard input, one a line.")
    predictor = Predictor(prompt, backend_options(option))
    if file:
        stream = read_records(file, header=predictor.config.data.header if predictor.config else True)
    _answer_all(predictor, chain(first, stream))


def _answer_all(predictor: "Predictor", stream: "Iterator[Placed]") -> None:
    """Print every record with its answer, some rows at a time; what came before a faulty row is answered."""
    columns = _text_columns(predictor)
    fault: DataError | None = None
    while fault is None:
        batch: list[tuple[dict[str, Any] | None, tuple[str, str]]] = []
        try:
            for where, record in islice(stream, ROWS_AT_ONCE):
                batch.append((record, _texts(record, where, columns) if record is not None else ("", "")))
        except DataError as error:
            fault = error
        if not batch and fault is None:
            return
        given = [texts for record, texts in batch if record is not None]
        pairs = [pair for _, pair in given] if predictor.task.template.takes_pair else None
        answers = iter(predictor.predict([first for first, _ in given], pairs))
        for record, _ in batch:
            print("" if record is None else _json_line(record, next(answers)))
        sys.stdout.flush()
    raise fault


def _text_columns(predictor: "Predictor") -> "Columns":
    """The columns that the run read its texts from."""
    from bbt.tasks import Columns
    from bbt.tasks.configured import columns_of, make_task

    if predictor.config is None:
        return Columns(text_pair="text_pair" if predictor.task.template.takes_pair else None)
    return columns_of(predictor.config.data, make_task(predictor.config.task, predictor.backend.info.kind))


def _texts(record: dict[str, Any], where: str, columns: "Columns") -> tuple[str, str]:
    """A record's text and second text, under the run's columns or under our names."""
    from bbt.tasks.examples import text_of

    def found(column: str, ours: str) -> str:
        return text_of(record, ours if column not in record and ours in record else column, where)

    return found(columns.text, "text"), found(columns.text_pair, "text_pair") if columns.text_pair else ""


def _json_line(record: dict[str, Any], answer: dict[str, Any]) -> str:
    """A record with its answer as JSON that standard output can hold."""
    named = {f"predicted_{key}" if key in record else key: value for key, value in answer.items()}
    line = json.dumps({**record, **named}, ensure_ascii=False, default=str)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps({**record, **named}, default=str)
    return line


def _input_rows() -> "Iterator[Placed]":
    """Lines of standard input: plain texts, or JSON objects; blank lines are None."""
    from bbt.tasks.records import json_record

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # a faulty byte is named with its line
    for number, line in enumerate(sys.stdin, start=1):
        where, line = f"standard input, line {number}", line.rstrip("\r\n").removeprefix("\ufeff")
        if not line.strip():
            yield where, None
        else:
            yield where, json_record(line, where) if line.lstrip().startswith("{") else {"text": line}
