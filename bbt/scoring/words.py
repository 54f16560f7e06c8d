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
    return tuple(_of_one_token(backend, task, examples[0], ranked[: TRIED * missing])[:missing])


def _of_one_token(backend: Backend, task: Task, example: Example, words: list[str]) -> list[str]:
    """Those of the words that the model can score beside the label words: where it refuses several, each half of them
    is tried."""
    try:
        backend.encode(task.rows([example], 0), [*task.label_words, *words])
        return words
    except LabelWordError:
        half = len(words) // 2
    halves = (words[:half], words[half:]) if half else ()
    return [word for part in halves for word in _of_one_token(backend, task, example, part)]
