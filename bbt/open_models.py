"""Models that several fits share: a grid search over a hundred fits loads its model once.

The last `MAX_OPEN` models that `PromptClassifier`s have asked for stay in memory, found by their arguments (backend,
name and options); a fitted classifier keeps its own beside. Each process has its own: with `n_jobs` of processes, each
loads the model once. `forget_models` lets them go, which is also needed where a folder's weights have changed.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock, RLock
from typing import Any

from bbt.backend import Backend
from bbt.predictor import open_backend
from bbt.settings import ModelConfig

MAX_OPEN = 2


@dataclass(frozen=True)
class OpenModel:
    """A backend that several fits share."""

    backend: Backend
    """The backend itself."""
    lock: Any = field(default_factory=RLock)
    """The lock that whoever computes with the backend holds: one thread at a time."""


def open_model(config: ModelConfig) -> OpenModel:
    """Open the model that a config names, if it is not open already.

    Raises:
        ConfigError: no such backend, or options that it does not take.
    """
    with _LOADING:
        return _opened(config.model_dump_json())


def forget_models() -> None:
    """Let go of all models but those that fitted classifiers hold."""
    with _LOADING:
        _opened.cache_clear()


_LOADING = Lock()


@lru_cache(maxsize=MAX_OPEN)
def _opened(config: str) -> OpenModel:
    return OpenModel(open_backend(ModelConfig.model_validate_json(config)))
