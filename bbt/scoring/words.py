"""The words from which labels are read are found in the rows themselves, so that any backend that scores label words
has them."""

import re
from collections import Counter
from collections.abc import Sequence

from bbt.backend import Backend
from bbt.errors import LabelWordError
from bbt.tasks import Example, Task

_WORD = re.compile(r"[^\W\d_]{3,}")

TRIED = 4
"""The candidates for each word that is wanted; some are more than one token of the model's."""
AT_ONCE = 64
"""The candidates that are tried together: servers bound the words that they are given (`bbt serve`: 256)."""


def further_words(backend: Backend, task: Task, examples: Sequence[Example], n_words: int) -> tuple[str, ...]:
    """The words that most of the examples hold, so many that they are `n_words` with the label words; ties go by the
    alphabet. Words of several tokens are left out, and so are those that the model has as one token with a label word.
    """
    missing = n_words - len(task.label_words)
    if missing < 1 or not examples:
        return ()
    found = Counter(word for e in examples for word in sorted(set(_WORD.findall(f"{e.text} {e.text_pair}".lower()))))
    label_words = {word.strip().lower() for word in task.label_words}
    ranked = sorted((word for word in found if word not in label_words), key=lambda word: (-found[word], word))
    words: list[str] = []
    for start in range(0, min(len(ranked), TRIED * missing), AT_ONCE):
        words += _of_one_token(backend, task, examples[0], words, ranked[start : start + AT_ONCE])
        if len(words) >= missing:
            break
    return tuple(words[:missing])


def _of_one_token(backend: Backend, task: Task, example: Example, known: list[str], words: list[str]) -> list[str]:
    """Those of the words that the model can score beside the label words and the `known` ones: what it refuses is left
    out and the others are tried again. Where it does not say which those are, each half is tried."""
    try:
        backend.encode(task.rows([example], 0), [*task.label_words, *known, *words])
        return words
    except LabelWordError as error:
        left = [word for word in words if word not in error.words]
    if len(left) < len(words):
        return _of_one_token(backend, task, example, known, left) if left else []
    half = len(words) // 2
    if not half:
        return []
    first = _of_one_token(backend, task, example, known, words[:half])
    return first + _of_one_token(backend, task, example, [*known, *first], words[half:])
