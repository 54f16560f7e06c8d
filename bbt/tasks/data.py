"""Labelled rows: bundled with the package, from your csv, tsv or jsonl files, or from Hugging Face `datasets`.

Few-shot protocol (BBT section 4.1, released code): shuffle the original training split with the seed; per class
the first k examples are train, the next k dev.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bbt.errors import DataError

MAX_BUNDLED_K = 16


@dataclass(frozen=True)
class Example:
    """One labelled row; `label` is an index in [0, K)."""

    text: str
    label: int
    text_pair: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold text, second text (None: the task takes none) and label."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"


@dataclass(frozen=True)
class Split:
    """k-shot train and dev rows, and the test rows."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]


def k_shot(
    examples: Sequence[Example], k: int, seed: int, label_names: Sequence[str]
) -> tuple[list[Example], list[Example]]:
    """Train and dev rows by the reference's rule; NumPy's legacy shuffle is frozen across versions."""
    order = np.arange(len(examples)).tolist()
    np.random.RandomState(seed).shuffle(order)
    return first_k_then_k([examples[i] for i in order], k, label_names)


def first_k_then_k(
    examples: Iterable[Example], k: int, label_names: Sequence[str]
) -> tuple[list[Example], list[Example]]:
    """Per class the first k rows are train, the next k dev.

    Raises:
        DataError: a class has fewer than 2 k rows.
    """
    seen: Counter[int] = Counter()
    train, dev = [], []
    for example in examples:
        seen[example.label] += 1
        if seen[example.label] <= k:
            train.append(example)
        elif seen[example.label] <= 2 * k:
            dev.append(example)
    for label, name in enumerate(label_names):
        if seen[label] < 2 * k:
            raise DataError(
                f"class {name!r} has {seen[label]} examples, {k}-shot needs {2 * k} ({k} train and {k} dev). "
                "Lower k or give more data."
            )
    return train, dev


def load_splits(
    train: Path,
    test: Path,
    k: int,
    seed: int,
    columns: Columns,
    label_names: Sequence[str],
    labels: Sequence[str],
) -> Split:
    """k-shot split of the user's files; `labels` are the values of the label column, in label order."""
    shots = k_shot(read_examples(train, columns, labels), k, seed, label_names)
    return Split(*shots, test=read_examples(test, columns, labels))


def read_examples(path: Path, columns: Columns, labels: Sequence[str]) -> list[Example]:
    """All rows of a csv, tsv or jsonl file.

    Raises:
        DataError: no such file, another format, no row, a missing column, an unknown label; names file and line.
    """
    examples = [to_example(record, f"{path}:{line}", columns, labels) for line, record in _records(path)]
    if not examples:
        raise DataError(f"{path} holds no rows.")
    return examples


def to_example(record: dict[str, Any], where: str, columns: Columns, labels: Sequence[str]) -> Example:
    """One record as an example; `where` names it in errors."""
    if None in record:
        raise DataError(f"{where}: more fields than the header has columns.")
    wanted = [c for c in (columns.text, columns.text_pair, columns.label) if c]
    for column in wanted:
        if record.get(column) is None:
            raise DataError(
                f"{where}: no column {column!r}. Columns here: {', '.join(map(str, record))}. "
                "Name yours under data.columns in the config."
            )
    value = str(record[columns.label])
    if value not in labels:
        raise DataError(f"{where}: unknown label {value!r}. Labels are: {', '.join(labels)} (data.labels).")
    pair = str(record[columns.text_pair]) if columns.text_pair else ""
    return Example(str(record[columns.text]), labels.index(value), pair)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"no data file {path}.")
    if path.suffix not in (".jsonl", ".csv", ".tsv"):
        raise DataError(f"{path}: format {path.suffix!r} is not known. Give a .jsonl, .csv or .tsv file.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:  # spreadsheets put a byte-order mark first
            if path.suffix == ".jsonl":
                yield from _jsonl_records(handle, str(path))
            else:
                yield from _table_records(handle, path.suffix == ".tsv")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}.") from error


def _table_records(handle: TextIO, tabs: bool) -> list[tuple[int, dict[str, Any]]]:
    """Rows under the header. In a tsv whose quotes do not match up, as in GLUE's files, a quote is text."""
    try:
        reader = csv.DictReader(handle, delimiter="\t" if tabs else ",", strict=True)
        return [(reader.line_num, record) for record in reader]
    except csv.Error:
        if not tabs:
            raise
    handle.seek(0)
    reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(reader.line_num, record) for record in reader]


def _jsonl_records(lines: Iterable[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}:{number}: not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}:{number}: expected a JSON object, got {type(record).__name__}.")
        yield number, record


def bundled_tasks() -> list[str]:
    """Names of the tasks whose few-shot rows and test set ship with the package."""
    return sorted(f.name for f in _bundle().iterdir() if (f / "few_shot.jsonl").is_file())


def bundled_splits(task: str, k: int, seed: int, label_names: Sequence[str]) -> Split:
    """The shipped rows of a task: for each shipped seed the first 32 rows a class, in the reference's order.

    Raises:
        DataError: the task, the seed or a k above 16 is not shipped.
    """
    few_shot = _bundled_records(task, "few_shot.jsonl")
    seeds = sorted({record["seed"] for record in few_shot})
    if seed not in seeds or k > MAX_BUNDLED_K:
        raise DataError(
            f"bundled {task} holds seeds {', '.join(map(str, seeds))} and k up to {MAX_BUNDLED_K}; asked for seed "
            f"{seed}, k {k}. Point data.train and data.test at the full data for others."
        )
    chosen = [Example(r["text"], r["label"]) for r in few_shot if r["seed"] == seed]
    return Split(*first_k_then_k(chosen, k, label_names), test=bundled_test(task))


def bundled_test(task: str) -> list[Example]:
    """The shipped test rows of a task."""
    return [Example(r["text"], r["label"]) for r in _bundled_records(task, "test.jsonl")]


def _bundle() -> Traversable:
    return files("bbt.tasks") / "bundled"


def _bundled_records(task: str, name: str) -> list[dict[str, Any]]:
    if task not in bundled_tasks():
        raise DataError(
            f"no rows of {task!r} ship with bbt (bundled: {', '.join(bundled_tasks())}). Point data.train and "
            "data.test at your files (data.source: files), or set data.source: huggingface."
        )
    text = (_bundle() / task / name).read_text(encoding="utf-8")
    return [record for _, record in _jsonl_records(text.split("\n"), f"{task}/{name}")]


def huggingface_splits(
    path: str,
    subset: str | None,
    splits: tuple[str, str],
    k: int,
    seed: int,
    columns: Columns,
    label_names: Sequence[str],
    labels: Sequence[str],
) -> Split:
    """Train and test splits of a data set on the Hugging Face hub (or a local folder in its format).

    Rows whose label is -1 (SNLI's unlabelled pairs) are left out, as in the released code.

    Raises:
        DataError: `datasets` is not installed, or the data set or a split of it cannot be loaded.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError("data.source: huggingface needs the package: pip install datasets.") from error
    loaded = []
    for split in splits:
        try:
            rows = load_dataset(path, subset, split=split)
        except Exception as error:  # the hub client raises many kinds of its own
            raise DataError(f"cannot load {path} {subset or ''} [{split}] from the hub: {error}") from error
        where = f"{path}[{split}]"
        kept = (row for row in rows if row.get(columns.label) != -1)
        loaded.append([to_example(row, where, columns, labels) for row in kept])
    return Split(*k_shot(loaded[0], k, seed, label_names), test=loaded[1])
