"""Libraries that draw from NumPy's global generator, made deterministic without disturbing anybody else."""

from types import TracebackType
from typing import Any

import numpy as np


class OwnGenerator:
    """A context in which NumPy's global generator is one of ours, which goes on from context to context."""

    def __init__(self, seed: int) -> None:
        self._own: Any = np.random.RandomState(seed).get_state()
        self._outside: Any = None

    def __enter__(self) -> None:
        self._outside = np.random.get_state()
        np.random.set_state(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = np.random.get_state()
        np.random.set_state(self._outside)
