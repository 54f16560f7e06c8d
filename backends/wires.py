"""The bytes of one query are estimated here, as each kind of backend sends it. The sizes of HTTP's heads and of JSON
around the numbers are rules of thumb."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bbt.runs.estimate import Measured, Wire

BYTES_PER_TOKEN = 4
"""The rule of thumb for English text, sent or received."""


@dataclass(frozen=True)
class ArrayWire:
    """The wire of a backend that is handed arrays and gives arrays or texts back, as a local one is."""

    hidden_size: int
    """The width H of a prompt token's vector."""
    in_words: bool
    """Whether prompts are words, and travel as token ids."""
    options: Mapping[str, Any]
    """The backend's options in the config."""

    def scores(self, rows: Measured, n_scores: int, intrinsic_dim: int | None) -> Wire:
        """One query: the prompt's vectors go up, and a float32 comes down for each of `n_scores` scores of a row.
        `intrinsic_dim` is given where the prompt is a point of a space of so many dimensions."""
        return Wire(self._prompt(rows), 4 * rows.n_examples * n_scores)

    def texts(self, rows: Measured, max_new_tokens: int) -> Wire:
        """One prompt's texts after all rows: its vectors go up, and texts of so many tokens at most come down."""
        return Wire(self._prompt(rows), BYTES_PER_TOKEN * rows.n_examples * max_new_tokens)

    def _prompt(self, rows: Measured) -> int:
        return 4 * rows.n_prompt_tokens * self.hidden_size


class LatentWire(ArrayWire):
    """The wire of `bbt serve`, which holds rows and space: of a searched prompt only z travels, in float32. For texts
    the prompt is registered, and asked for by its id."""

    def scores(self, rows: Measured, n_scores: int, intrinsic_dim: int | None) -> Wire:
        """One query; see `ArrayWire.scores`."""
        plain = super().scores(rows, n_scores, intrinsic_dim)
        return plain if intrinsic_dim is None else Wire(4 * intrinsic_dim, plain.down)

    def texts(self, rows: Measured, max_new_tokens: int) -> Wire:
        """One prompt's texts; see `ArrayWire.texts`."""
        plain = super().texts(rows, max_new_tokens)
        return Wire(plain.up + 900, plain.down + 300 + 4 * rows.n_examples)


class EmbeddingWire(ArrayWire):
    """The wire of vLLM: every row travels whole, as base64 of its embeddings, or as token ids where its prompt is of
    words or there is none. A target of several tokens travels as often as it has tokens, each time with one more."""

    def scores(self, rows: Measured, n_scores: int, intrinsic_dim: int | None) -> Wire:
        """One query; see `ArrayWire.scores`."""
        down = (370 + 30 * n_scores) * rows.n_asked
        if self.in_words:
            return Wire(self._ids(rows.n_asked_tokens, rows.n_asked), down)
        if not rows.n_prompt_tokens and rows.n_asked > rows.n_examples:  # the whole row is echoed with its target
            return Wire(self._ids(rows.n_tokens, rows.n_examples), 40 * rows.n_tokens + 200 * rows.n_examples)
        return Wire(self._embedded(rows.n_asked_tokens, rows.n_asked), down)

    def texts(self, rows: Measured, max_new_tokens: int) -> Wire:
        """One prompt's texts; see `ArrayWire.texts`."""
        sent = self._embedded if rows.n_prompt_tokens else self._ids
        return Wire(sent(rows.n_tokens, rows.n_examples), (250 + BYTES_PER_TOKEN * max_new_tokens) * rows.n_examples)

    def _ids(self, n_tokens: int, n_rows: int) -> float:
        return 6 * n_tokens + 10 * n_rows

    def _embedded(self, n_tokens: int, n_rows: int) -> float:
        size = 2 if self.options.get("precision") in ("bf16", "fp16") else 4
        return 4 / 3 * (size * self.hidden_size * n_tokens + 1500 * n_rows)


class TextWire(ArrayWire):
    """The wire of an API of text alone: every row is a request of its own."""

    def scores(self, rows: Measured, n_scores: int, intrinsic_dim: int | None) -> Wire:
        """One query; see `ArrayWire.scores`."""
        listed = 0 if self.options.get("scores") == "answers" else int(self.options.get("top_logprobs", 20))
        return Wire(self._requests(rows), (480 + 28 * listed) * rows.n_examples)

    def texts(self, rows: Measured, max_new_tokens: int) -> Wire:
        """One prompt's texts; see `ArrayWire.texts`."""
        return Wire(self._requests(rows), (480 + BYTES_PER_TOKEN * max_new_tokens) * rows.n_examples)

    def _requests(self, rows: Measured) -> float:
        return BYTES_PER_TOKEN * rows.n_tokens + 300 * rows.n_examples


WIRES: dict[str, type[ArrayWire]] = {
    "http": LatentWire,
    "pool": LatentWire,
    "text-api": TextWire,
    "vllm": EmbeddingWire,
}
"""The wires of the backends that do not exchange plain arrays, by name."""
