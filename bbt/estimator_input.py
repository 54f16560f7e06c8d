"""What scikit-learn's users hand over as X and y, as texts, labels and examples."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, column_or_1d

from bbt.errors import DataError
from bbt.tasks import Example
from bbt.tasks.examples import checked_text


def rows_of_texts(X: Any) -> list[tuple[str, ...]]:  # noqa: N803
    """Read each row's texts, of which there are one or two.

    Raises:
        DataError: no rows, rows of another length, or what is no text.
    """
    if hasattr(X, "toarray"):
        raise DataError(f"X is sparse (a {type(X).__name__}): sparse input is not supported, expected texts.")
    if isinstance(X, (str, bytes, Mapping)) or not isinstance(X, Iterable):
        raise DataError(f"X is a {type(X).__name__}, expected texts: a list, an array, a Series or a DataFrame.")
    rows_of_frame = getattr(X, "itertuples", None)
    values = list(rows_of_frame(index=False, name=None) if rows_of_frame else X)
    if not values:
        raise DataError("X has 0 sample(s) (texts) while a minimum of 1 is required.")
    rows = [(value,) if isinstance(value, str) else tuple(np.atleast_1d(value)) for value in values]
    n = len(rows[0])
    for i, row in enumerate(rows):
        if len(row) != n or n not in (1, 2):
            shape = f"{len(row)} values" if len(row) == n else f"{len(row)} values, the first one {n}"
            raise DataError(f"X[{i}] holds {shape}; expected one text a row, or two.")
    return [tuple(checked_text(_plain(value), f"X[{i}]") for value in row) for i, row in enumerate(rows)]


def _plain(value: Any) -> Any:
    """Make a Python string of one of NumPy's; other values stay as they are."""
    return str(value) if isinstance(value, np.str_) else value


def labels_and_classes(y: Any) -> tuple[list[Hashable], NDArray[Any]]:
    """Read the labels, one a row and of any hashable kind, and the classes (K,) among them. The classes are sorted
    where they can be, else they stand in the order in which they come.

    Raises:
        ValueError: numbers that are no classes; DataError: no labels, or one that is missing or cannot be hashed.
    """
    if y is None:
        raise DataError("requires y to be passed, but the target y is None: give a label for each text.")
    if isinstance(y, (list, tuple)) and not _alike(y):
        seen = list(y)
    else:
        array = column_or_1d(y, warn=True)
        assert_all_finite(array, input_name="y")
        seen = array.tolist()
        if array.dtype.kind != "O":
            check_classification_targets(array)
            return seen, np.unique(array)
    for i, label in enumerate(seen):
        if label is None or not isinstance(label, Hashable) or label != label:  # NaN differs from itself
            raise DataError(
                f"y[{i}] is {label!r}: Input y contains NaN, None or what cannot be hashed, and not labels."
            )
    distinct: list[Any] = list(dict.fromkeys(seen))
    with suppress(TypeError):
        distinct = sorted(distinct)
    classes = np.empty(len(distinct), dtype=object)
    classes[:] = distinct
    return seen, classes


def _alike(labels: Sequence[Any]) -> bool:
    """Whether NumPy can hold the labels as they are: all of them texts, or all of them numbers."""
    return all(isinstance(one, str) for one in labels) or all(
        isinstance(one, (bool, int, float, np.number, np.bool_)) for one in labels
    )


def examples_of(texts: Sequence[tuple[str, str]], labels: Sequence[Hashable], classes: NDArray[Any]) -> list[Example]:
    """Make examples of texts and of their labels' places among the classes.

    Raises:
        DataError: another number of labels than texts, or a label that is none of the classes.
    """
    if len(texts) != len(labels):
        counts = f"{len(texts)} texts, {len(labels)} labels"
        raise DataError(f"Found input variables with inconsistent numbers of samples: {counts}.")
    index = {label: i for i, label in enumerate(classes.tolist())}
    for label in labels:
        if label not in index:
            raise DataError(f"dev has the label {label!r}; the classes are {', '.join(map(str, classes))}.")
    return [Example(text, index[label], pair) for (text, pair), label in zip(texts, labels, strict=True)]
