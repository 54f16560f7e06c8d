"""Rows are read here by Hugging Face `datasets`, from a data set on the hub or a local folder in its format."""

import warnings
from collections.abc import Sequence
from typing import Any

from bbt.errors import DataError
from bbt.tasks.examples import UNLABELLED, Columns, Example, label_value, to_example


def hub_examples(
    path: str,
    subset: str | None,
    split: str,
    columns: Columns,
    label_names: Sequence[str],
    labels: Sequence[str] | None = None,
    known: Sequence[str] | None = None,
) -> list[Example]:
    """Read the rows of one split. `labels` are the label column's values in label order, by number or by the data set's
    own names (none: 0 to K - 1, or the data set's names where it has some); `known` are the names that we know it by.

    Rows whose label is -1 (SNLI's unlabelled pairs) are left out, as in the released code; a warning counts them.

    Raises:
        DataError: `datasets` is not installed, the split cannot be loaded or holds no labelled row, or its labels are
            not the task's.
    """
    rows, where = _loaded(path, subset, split), f"{path}[{split}]"
    names = getattr(rows.features.get(columns.label), "names", None)
    if names is not None:
        labels = in_label_order(names, label_names, labels, known, where)
    elif labels is None:
        labels = [str(i) for i in range(len(label_names))]
    placed = [(f"{where} row {number}", row) for number, row in enumerate(rows, start=1)]
    kept = [(place, row) for place, row in placed if label_value(row.get(columns.label)) != UNLABELLED]
    if not kept:
        fault = f"all {len(placed)} rows have the label -1, which marks rows without a label" if placed else "no rows"
        raise DataError(f"{where}: {fault}. Name another split under data.splits, e.g. [train, validation].")
    if len(kept) < len(placed):
        left_out = len(placed) - len(kept)
        warnings.warn(f"{where}: {left_out} of {len(placed)} rows have no label (-1) and are left out.", stacklevel=2)
    return [to_example(row, place, columns, labels) for place, row in kept]


def hub_targets(path: str, subset: str | None, split: str, columns: Columns) -> list[Example]:
    """Read the rows of one split of a data set with sources and targets.

    Raises:
        DataError: `datasets` is not installed, the split cannot be loaded or holds no row, or a row lacks a value.
    """
    where = f"{path}[{split}]"
    rows = [
        to_example(row, f"{where} row {number}", columns, ())
        for number, row in enumerate(_loaded(path, subset, split), start=1)
    ]
    if not rows:
        raise DataError(f"{where}: no rows. Name another split under data.splits, e.g. [train, validation].")
    return rows


def _loaded(path: str, subset: str | None, split: str) -> Any:
    """Load one split by `datasets`.

    Raises:
        DataError: `datasets` is not installed, or cannot load the split.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            "data.source: huggingface needs the package datasets: pip install 'bbt-prompt[datasets]'."
        ) from error
    try:
        return load_dataset(path, subset, split=split)
    except Exception as error:  # the hub client raises many kinds of its own
        raise DataError(f"cannot load {path} {subset or ''} [{split}] from the hub: {error}") from error


def in_label_order(
    names: Sequence[str],
    label_names: Sequence[str],
    labels: Sequence[str] | None,
    known: Sequence[str] | None,
    where: str,
) -> list[str]:
    """Put the numbers of a data set's labels, whose `names` are in its own order, into the order of the task's labels.
    Capitals, blanks and punctuation do not count. A warning tells where the order differs.

    Raises:
        DataError: the names do not tell which label is which, or contradict what the user says.
    """
    numbers = {_plain(name): number for number, name in enumerate(names)}
    theirs = ", ".join(f"{number} {name!r}" for number, name in enumerate(names))
    wanted = labels or known or label_names
    if all(_plain(name) in numbers for name in wanted) and (labels or len(wanted) == len(names)):
        order = [numbers[_plain(name)] for name in wanted]
    elif labels and all(label_value(label) in map(str, range(len(names))) for label in labels):
        order = [int(label_value(label)) for label in labels]
    else:
        raise DataError(
            f"{where}: its labels are {theirs}; the task's are {', '.join(wanted)}. Say which is which: data.labels, "
            "the data set's names in the order of the task's labels."
        )
    for name, number in zip(label_names, order, strict=True):
        if numbers.get(_plain(name), number) != number:
            raise DataError(
                f"{where}: data.labels takes {names[number]!r} for the task's label {name!r}, but the data set has a "
                f"label of that name. Its labels are {theirs}; mend data.labels or task.label_names."
            )
    if not labels and order != sorted(order):
        warnings.warn(
            f"{where}: its labels stand in another order than the task's ({theirs}); they are matched by name.",
            stacklevel=2,
        )
    return [str(number) for number in order]


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())
