"""A backend that is arithmetic: it loads nothing, and what a search does with it can be worked out by hand.

In a config it is `backend: bbt.testing:ToyBackend`. It is also the shortest backend that keeps the whole contract, and
so a place to begin one of your own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbt.backend import ModelInfo, Row
from bbt.errors import BackendError, LabelWordError
from bbt.types import Prompts, Scores

HIDDEN = 4
"""The hidden size H."""
VOCABULARY = 50
"""Tokens; the word embedding of token i is i / 100, H times, and the first five are special."""
MAX_LENGTH = 512
"""Tokens of a row at most. A word of a row's text is one token, and so is the mask."""


@dataclass
class ToyRows:
    """The rows of one split."""

    difficulties: list[float]
    """(B,) a number a row: the one that its text is, else a tenth of the text's length in characters."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""
    n_labels: int = 2
    """The number of labels K."""
    n_tokens: int = 0
    """The tokens of all rows, prompt tokens included."""
    n_truncated: int = 0
    """The number of rows whose text was cut."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return len(self.difficulties)


class ToyBackend:
    """A backend that scores label 1 of a row by difficulty - |prompt - target|^2, label 0 by 0, and any label k above
    them by -k.

    Prompts without tokens have the distance `manual`; a prompt whose first number is above `breaks_above` scores NaN.
    `n_calls` counts populations.
    """

    def __init__(
        self, model: str = "toy", target: float = 1.0, manual: float = 100.0, breaks_above: float = np.inf
    ) -> None:
        std = float(np.std(np.arange(VOCABULARY) / 100))
        fingerprint = f"toy-{target}"
        self.info = ModelInfo(
            model, "masked", "Toy", HIDDEN, 1, VOCABULARY, MAX_LENGTH, std, fingerprint, "cpu", "float32"
        )
        self._target, self._manual, self._breaks_above = target, manual, breaks_above
        self.n_calls = 0

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> ToyRows:
        """See `Backend.encode`; an anchor changes nothing here.

        Raises:
            LabelWordError: a label word of several words; BackendError: no rows, or a prompt that leaves no room.
        """
        if not rows:
            raise BackendError("there are no rows to encode.")
        if refused := [word for word in label_words if len(word.split()) != 1]:
            word, pieces = refused[0], refused[0].split()
            raise LabelWordError(
                f"label word {word!r} is not one token of this model but {len(pieces)}: {pieces}.", refused
            )
        n_prompt_tokens = sum(segment.n_tokens for segment in rows[0])
        room = MAX_LENGTH - n_prompt_tokens - 1
        if room < 0:
            raise BackendError(
                f"the template with its prompt takes {n_prompt_tokens + 1} tokens, the model {MAX_LENGTH}. "
                "Take fewer prompt tokens."
            )
        words = [" ".join(s.text for s in row if s.kind == "text").split() for row in rows]
        kept = [" ".join(some[:room]) for some in words]
        return ToyRows(
            [float(text) if re.fullmatch(r"-?[\d.]*\d", text) else len(text) / 10 for text in kept],
            n_prompt_tokens,
            len(label_words),
            sum(min(len(some), room) + n_prompt_tokens + 1 for some in words),
            sum(len(some) > room for some in words),
        )

    def label_scores(self, prompts: Prompts, encoded: ToyRows) -> Scores:
        """See `Backend.label_scores`."""
        expected = (encoded.n_prompt_tokens, HIDDEN)
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        self.n_calls += 1
        flat = np.ascontiguousarray(prompts, np.float32).reshape(len(prompts), -1)
        distances = np.square(flat - np.float32(self._target)).sum(axis=1)
        if not flat.shape[1]:
            distances = np.full(len(prompts), self._manual)
        scores = np.zeros((len(prompts), encoded.n_examples, encoded.n_labels), np.float32)
        scores -= np.arange(encoded.n_labels)
        scores[:, :, 1] = np.array(encoded.difficulties)[None] - distances[:, None]
        if flat.shape[1]:
            scores[flat[:, 0] > self._breaks_above] = np.nan
        return scores

    def embed_text(self, text: str) -> Prompts:
        """The word embeddings (1, T, H) of a text: each word is a token, whose id is the word's length."""
        return self.embed_ids([len(word) for word in text.split()])

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids."""
        return np.array([[[i / 100] * HIDDEN for i in token_ids]], np.float32).reshape(1, -1, HIDDEN)

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens but the first five."""
        return list(range(5, VOCABULARY))
