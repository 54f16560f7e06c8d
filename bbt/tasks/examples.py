"""Records become examples: which column is text, which is label, and what a label's value means."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from bbt.errors import DataError
from bbt.tasks.records import read_records

UNLABELLED = "-1"  # what Hugging Face data sets hold for a row without a label

_WHOLE = re.compile(r"(-?\d+)\.0+")


@dataclass(frozen=True)
class Example:
    """One labelled row, or one row with its targets where text is to be generated."""

    text: str
    """The row's text."""
    label: int
    """The label's index in [0, K); 0 where text is to be generated."""
    text_pair: str = ""
    """The row's second text; empty where it has none."""
    targets: tuple[str, ...] = ()
    """The texts that may be generated; none where the row has a label."""


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns."""

    text: str = "text"
    """The column of the text."""
    text_pair: str | None = None
    """The column of the second text (none: the task takes none)."""
    label: str = "label"
    """The column of the label."""
    target: str | None = None
    """The column of the text to be generated (none: rows have labels)."""


def read_examples(path: Path | str, columns: Columns, labels: Sequence[str], header: bool = True) -> list[Example]:
    """Read all rows of a csv, tsv, jsonl or parquet file; blank lines are passed over. `labels` are the values of the
    label column in label order; without a `header` columns are called 1, 2, 3, ... from the left.

    Raises:
        DataError: no such file, another format, no row, a row that lacks a value, an unknown label; names file and
            line.
    """
    examples = [
        to_example(record, where, columns, labels) for where, record in read_records(path, header) if record is not None
    ]
    if not examples:
        raise DataError(f"{path} holds no rows.")
    return examples


def to_example(record: dict[str, Any], where: str, columns: Columns, labels: Sequence[str]) -> Example:
    """Make an example of one record; `where` names it in errors.

    Raises:
        DataError: a column or value is missing, a text is none, or the label is unknown.
    """
    text = text_of(record, columns.text, where)
    pair = text_of(record, columns.text_pair, where) if columns.text_pair else ""
    if columns.target:
        return Example(text, 0, pair, targets_of(record, columns.target, where))
    value = label_value(value_of(record, columns.label, where))
    values = labels if value in labels else [label_value(label) for label in labels]
    if value not in values:
        hint = " -1 marks a row without a label: leave such rows out." if value == UNLABELLED else ""
        raise DataError(f"{where}: unknown label {value!r}. Labels are: {', '.join(values)} (data.labels).{hint}")
    return Example(text, values.index(value), pair)


def value_of(record: dict[str, Any], column: str, where: str) -> Any:
    """Return what stands under a column.

    Raises:
        DataError: the record has no such column, or nothing stands there.
    """
    if column not in record:
        numbered = all(name.isdecimal() for name in record)
        raise DataError(
            f"{where}: no column {column!r}. Columns here: {', '.join(map(str, record))}. Name yours under "
            f"data.columns in the config{'' if numbered else '; for a file without a header set data.header: false'}."
        )
    value = record[column]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where}: this row has no value for {column!r}.")
    return value


def text_of(record: dict[str, Any], column: str, where: str) -> str:
    """Return the text that stands under a column; an empty one is a text, too.

    Raises:
        DataError: no such column, nothing stands there, or what stands there is no text.
    """
    value = "" if record.get(column) == "" else value_of(record, column, where)
    if isinstance(value, Real) and not isinstance(value, bool):
        value = str(value)
    return checked_text(value, f"{where}: {column!r}")


def targets_of(record: dict[str, Any], column: str, where: str) -> tuple[str, ...]:
    """Return the target that stands under a column, or the several of a list or of SQuAD's {"text": [...]}.

    Raises:
        DataError: no such column, none stands there, or one is no text or empty.
    """
    value = value_of(record, column, where)
    given = value["text"] if isinstance(value, dict) and "text" in value else value
    if not isinstance(given, (list, tuple)):
        given = [text_of(record, column, where)]
    targets = tuple(checked_text(one, f"{where}: {column!r}") for one in given)
    if not targets or not all(target.strip() for target in targets):
        raise DataError(f"{where}: a target under {column!r} is empty: leave such rows out.")
    return targets


def checked_text(value: object, what: str) -> str:
    """Return `value` if it is a text that can be encoded; `what` names it in errors.

    Raises:
        DataError: no string, or one with a lone surrogate (half of a character, as of a cut emoji).
    """
    if isinstance(value, bytes):
        raise DataError(f"{what} is bytes, not text: decode it, e.g. with .decode('utf-8').")
    if not isinstance(value, str):
        raise DataError(f"{what} is {value!r}, not text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        if 0xDC80 <= half <= 0xDCFF:  # how Python hands on a byte of the command line or of standard input
            raise DataError(f"{what} is not UTF-8 text (byte 0x{half - 0xDC00:02x}): convert it.") from error
        raise DataError(
            f"{what} holds half a character (\\u{half:04x}, a lone surrogate, as of a cut emoji): mend or remove it."
        ) from error
    return value


def label_value(value: object) -> str:
    """Write a label as it is compared: without blanks around it, and 1.0 (as pandas writes whole numbers) as 1."""
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text
