"""A backend that is arithmetic, so that what the search does with it can be worked out by hand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bbt.backend import ModelInfo, Row
from bbt.config import SECTIONS, make_config
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task, Template

HIDDEN = 4
TASK = Task("toy", Template("{prompt} {text} {mask}"), ("no", "yes"), ("no", "yes"))


@dataclass
class ToyRows:
    """A row is its difficulty (the number in its text) and how many prompt tokens it holds."""

    difficulties: list[float]
    n_prompt_tokens: int
    n_truncated: int = 0

    @property
    def n_examples(self) -> int:
        return len(self.difficulties)

    @property
    def n_tokens(self) -> int:
        return self.n_examples * (self.n_prompt_tokens + 2)


class ToyBackend:
    """Scores label 1 of a row by difficulty - |prompt - target|^2 and every other label 0.

    Prompts without tokens have the distance `manual`; a prompt whose first number is above `breaks_above` scores NaN.
    """

    def __init__(
        self, model: str = "toy", target: float = 1.0, manual: float = 100.0, breaks_above: float = np.inf
    ) -> None:
        self.info = ModelInfo(model, "masked", "Toy", HIDDEN, 1, 50, 512, 0.1, f"toy-{target}", "cpu", "float32")
        self._target, self._manual, self._breaks_above = target, manual, breaks_above
        self.n_calls = 0

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor=None) -> ToyRows:
        texts = ["".join(s.text for s in row if s.kind == "text") for row in rows]
        numbers = [float(t) if re.fullmatch(r"-?[\d.]*\d", t) else len(t) / 10 for t in texts]
        return ToyRows(numbers, sum(segment.n_tokens for segment in rows[0]))

    def label_scores(self, prompts, encoded):
        assert prompts.shape[1] == encoded.n_prompt_tokens
        self.n_calls += 1
        flat = prompts.reshape(len(prompts), -1)
        distances = np.square(flat - np.float32(self._target)).sum(axis=1)
        if not flat.shape[1]:
            distances = np.full(len(prompts), self._manual)
        scores = np.zeros((len(prompts), encoded.n_examples, 2), np.float32)
        scores[:, :, 1] = np.array(encoded.difficulties)[None] - distances[:, None]
        if flat.shape[1]:
            scores[flat[:, 0] > self._breaks_above] = np.nan
        return scores

    def embed_text(self, text: str):
        return self.embed_ids([len(word) for word in text.split()])

    def embed_ids(self, token_ids: Sequence[int]):
        return np.array([[[i / 100] * HIDDEN for i in token_ids]], np.float32).reshape(1, -1, HIDDEN)

    def ordinary_ids(self) -> list[int]:
        return list(range(5, 50))


def toy_scorer(backend: ToyBackend, difficulties: Sequence[float], ledger: Ledger) -> Scorer:
    """Rows of these difficulties, all of label 1."""
    return Scorer(backend, TASK, [Example(str(d), 1) for d in difficulties], ledger)


def shared_config(tree):
    """A config whose sections are shared by several methods: each takes what it reads."""
    sections = {key: value for key, value in tree.items() if key in SECTIONS}
    return make_config({key: value for key, value in tree.items() if key not in SECTIONS}, sections)
