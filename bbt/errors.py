"""What can go wrong, as a tree. Every message says what was given, what was expected and what to do.

BbtError
├── ConfigError      a configuration that cannot be used (unknown key, impossible value)
├── DataError        a task's data (missing column, unknown label, too few examples)
├── LabelWordError   a label word that is not one token of the model's vocabulary
├── PromptError      a saved prompt that is damaged or made for another model
├── BackendError     a model or endpoint that cannot do what was asked
│   └── EndpointError    an endpoint that refuses, cannot be reached or does not answer soundly
└── RunError         a run folder (exists already, cannot be resumed, not a run)
"""

import difflib
from collections.abc import Iterable, Sequence


class BbtError(Exception):
    """Base of every error that bbt raises on purpose: the command line prints it as one line."""


class ConfigError(BbtError):
    """A configuration that cannot be used."""


class DataError(BbtError, ValueError):
    """A data set that does not fit its task."""


class LabelWordError(BbtError):
    """A label word that is not exactly one token; `words` are all that were refused together, the first of which the
    message is about."""

    def __init__(self, message: str, words: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.words = tuple(words)


class PromptError(BbtError):
    """A saved prompt that cannot be read or does not fit the model."""


class BackendError(BbtError):
    """A model or endpoint that cannot do what was asked."""


class EndpointError(BackendError):
    """An endpoint that refuses, cannot be reached or does not answer soundly; `status` is its HTTP state, if one
    was the reason."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RunError(BbtError):
    """A run folder that cannot be created, read or resumed."""


def unknown(what: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for an unknown name: what was given, the nearest valid name, all valid names."""
    names = sorted(valid)
    return f"unknown {what} {name!r}.{did_you_mean(name, names)} Valid: {', '.join(names)}."


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The question after the nearest valid name, a blank before it; empty if none is near."""
    near = difflib.get_close_matches(name.lower(), list(valid), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
