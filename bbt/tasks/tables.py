"""Rows that are in memory already, in whatever holds them, or in a file, are read into examples here.

A table is a pandas DataFrame, a `datasets.Dataset`, a list of dicts, a list of tuples (text, label) or (text, second
text, label), or the path of a csv, tsv, jsonl or parquet file. pandas and datasets are recognised by what they can do
and are not imported.
"""

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bbt.errors import DataError
from bbt.tasks.data import Shots, Split, draw_split, share_out
from bbt.tasks.examples import UNLABELLED, Columns, Example, label_value, to_example, value_of
from bbt.tasks.hub import in_label_order
from bbt.tasks.records import Placed, Record, read_records

Table: TypeAlias = Any
"""A table of rows: whatever `records_of` reads."""

KINDS = (
    "a DataFrame, a datasets.Dataset, a list of dicts, a list of tuples (text, label) or (text, second text, label), "
    "or a path"
)


@dataclass(frozen=True)
class Tables:
    """The tables of one run, and how they are read."""

    train: Table
    """The train rows."""
    dev: Table | float
    """The dev rows, or which share of the train rows dev is, in (0, 1)."""
    test: Table | None
    """The test rows (none: nothing is tested)."""
    columns: Columns
    """The names of the columns, which are the same in all tables."""
    labels: Sequence[Hashable] | None = None
    """The label column's values (K,) in label order (none: they are found out, see `label_values`)."""

    def label_values(self, names: Sequence[str] | None) -> tuple[list[str], tuple[str, ...]]:
        """Find the label column's values in label order, and what the labels are called: by `names` where there are
        some, else by the values, or by the data set's own names.

        Without `labels` the values are the names themselves, or 0 to K - 1 in the order of the names, or those that
        the train rows have, sorted.

        Raises:
            DataError: values that do not tell which label is which.
        """
        own = _class_names(self.train, self.columns.label)
        if own is not None:
            given = None if self.labels is None else [str(label) for label in self.labels]
            wanted = names or given or own
            numbers = in_label_order(own, wanted, given, None, "train")
            return [label_value(own[int(number)]) for number in numbers], tuple(wanted)
        if self.labels is not None:
            values = [label_value(label) for label in self.labels]
            return values, tuple(names or values)
        found = {
            label_value(value_of(record, self.columns.label, where))
            for where, record in records_of(self.train, self.columns, "train")
            if record is not None
        }
        if not found:
            raise DataError("train holds no rows.")
        if names is None:
            values = _sorted_values(found)
            return values, tuple(values)
        numbers = [str(i) for i in range(len(names))]
        for values in (list(names), numbers):
            if found <= set(values):
                return values, tuple(names)
        raise DataError(
            f"train: its labels are {', '.join(_sorted_values(found))}; the task's are {', '.join(names)}. Say which "
            "is which: labels=[...], the column's values in the order of the task's labels."
        )

    def split(self, values: Sequence[str], k: Shots, seed: int, label_names: Sequence[str]) -> Split:
        """Read train rows (k a class, or all), dev and test rows; the label column's `values` are in label order.

        Raises:
            DataError: rows that lack a value, an unknown label, or too few rows.
        """
        train = examples_of(self.train, self.columns, values, "train")
        test = [] if self.test is None else examples_of(self.test, self.columns, values, "test")
        if not isinstance(self.dev, float):
            dev = examples_of(self.dev, self.columns, values, "dev")
            return draw_split(train, dev, test, k, seed, label_names)
        if k != "all":
            return draw_split(train, None, test, k, seed, label_names)
        kept, dev = share_out(train, self.dev, seed)
        return draw_split(kept, dev, test, "all", seed, label_names)


def examples_of(table: Table, columns: Columns, values: Sequence[str], what: str) -> list[Example]:
    """Read all rows of a table as examples; `what` names it in errors. Rows of a `datasets.Dataset` whose label is -1,
    which marks rows without a label there, are left out with a warning.

    Raises:
        DataError: no rows, a missing column or value, a text that is none, or an unknown label.
    """
    placed = [(where, record) for where, record in records_of(table, columns, what) if record is not None]
    if _class_names(table, columns.label) is not None:
        kept = [(where, record) for where, record in placed if label_value(record[columns.label]) != UNLABELLED]
        if len(kept) < len(placed):
            left_out = len(placed) - len(kept)
            warnings.warn(
                f"{what}: {left_out} of {len(placed)} rows have no label (-1) and are left out.", stacklevel=2
            )
        placed = kept
    if not placed:
        raise DataError(f"{what} holds no rows.")
    return [to_example(record, where, columns, values) for where, record in placed]


def records_of(table: Table, columns: Columns, what: str) -> Iterator[Placed]:
    """Yield the records of a table with their places. Where a `datasets.Dataset` has names for its labels, they stand
    in place of the numbers.

    Raises:
        DataError: it is nothing that holds rows, or a row that is neither a dict nor a tuple of the right length.
    """
    if isinstance(table, (str, Path)):
        yield from read_records(table)
        return
    names = _class_names(table, columns.label)
    for number, row in enumerate(_rows(table, what), start=1):
        record = _record(row, columns, f"{what} row {number}")
        if names is not None and str(record[columns.label]) != UNLABELLED:
            record[columns.label] = names[record[columns.label]]
        yield f"{what} row {number}", record


def _rows(table: Table, what: str) -> Iterable[Any]:
    """Give the rows of whatever holds them.

    Raises:
        DataError: it is nothing that holds rows, or has two columns of one name.
    """
    if hasattr(table, "itertuples") and hasattr(table, "columns"):  # a DataFrame
        names = list(table.columns)
        if len(set(names)) < len(names):
            raise DataError(f"{what} has two columns of one name: {', '.join(map(str, names))}.")
        known = table.astype(object).where(table.notna(), None)  # pandas has several values for nothing
        return (dict(zip(names, row, strict=True)) for row in known.itertuples(index=False, name=None))
    if isinstance(table, (bytes, Mapping)) or not isinstance(table, Iterable):
        hint = f"; one of its parts, {what}[{next(iter(table))!r}]?" if isinstance(table, Mapping) and table else ""
        raise DataError(f"{what} is a {type(table).__name__}, expected {KINDS}{hint}.")
    return table


def _record(row: Any, columns: Columns, where: str) -> Record:
    """Make a record of a row: a dict is one as it is, a tuple's values go under the columns' names.

    Raises:
        DataError: the row is neither, or a tuple of another length.
    """
    if isinstance(row, Mapping):
        return dict(row)
    names = [columns.text, *([columns.text_pair] if columns.text_pair else []), columns.label]
    if not isinstance(row, (tuple, list, np.ndarray)) or len(row) != len(names):
        shown = f"{len(row)} values" if isinstance(row, (tuple, list, np.ndarray)) else f"a {type(row).__name__}"
        raise DataError(f"{where} is {shown}, expected a dict, or a tuple ({', '.join(names)}).")
    return dict(zip(names, row, strict=True))


def _class_names(table: Table, column: str) -> list[str] | None:
    """Look up what a `datasets.Dataset` calls its labels; None where it does not say, and for other tables."""
    features = getattr(table, "features", None)
    names = getattr(features.get(column), "names", None) if isinstance(features, Mapping) else None
    return None if names is None else list(names)


def _sorted_values(values: Iterable[str]) -> list[str]:
    """Sort values by their size where all are whole numbers, else by the alphabet."""
    values = list(values)
    if all(value.removeprefix("-").isdecimal() for value in values):
        return sorted(values, key=int)
    return sorted(values)
