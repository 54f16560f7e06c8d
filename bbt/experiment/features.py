"""Frozen features are what the model makes of the rows of the manual template, for classifiers that are trained on
them."""

import time
from collections.abc import Iterator, Sequence

from bbt.backend import Backend, FeatureBackend, Features, require
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, Task

ROWS_AT_ONCE = 256
"""Rows whose hidden states are held at a time: 256 rows of 512 tokens and H = 1024 are 540 MB."""


def feature_batches(
    backend: Backend, task: Task, examples: Sequence[Example], ledger: Ledger
) -> Iterator[list[Features]]:
    """Yield the examples' features, some at a time, and count what they cost.

    Raises:
        BackendError: the backend hands out no hidden states.
    """
    frozen = require(backend, FeatureBackend)
    for first in range(0, len(examples), ROWS_AT_ONCE):
        some = examples[first : first + ROWS_AT_ONCE]
        start = time.perf_counter()
        encoded = frozen.encode(task.rows(some, 0), task.label_words)
        features = frozen.features(encoded)
        ledger.backend_seconds += time.perf_counter() - start
        ledger.seconds += time.perf_counter() - start
        ledger.examples += len(some)
        ledger.truncated += encoded.n_truncated
        ledger.bytes_down += sum(row.hidden_states.nbytes for row in features)
        yield features


def all_features(backend: Backend, task: Task, examples: Sequence[Example], ledger: Ledger) -> list[Features]:
    """The features of all the examples; what they cost is counted."""
    return [row for batch in feature_batches(backend, task, examples, ledger) for row in batch]
