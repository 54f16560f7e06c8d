"""Rows for an encoder-decoder: what its encoder reads, and what its decoder is given before it answers.

Where `{mask}` or `{target}` comes last, nothing stands there in the encoder's input, and the answer is what the decoder
says first. Within the text a token stands there, and the decoder is given what it would have said until then:

- T5's kind has the sentinel `<extra_id_0>` in the text, and the decoder says it before what belongs there (Raffel et
  al. 2020, arXiv 1910.10683, section 3.1.4); so it does where the template itself holds the sentinel.
- BART's kind has its mask token in the text, and the decoder says the whole text again (Lewis et al. 2020, arXiv
  1910.13461, section 2.2), so it is given all words left of the mask.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.local.encoding import RowTokenizer, TokenRow
from bbt.backend import Row, Segment
from bbt.errors import BackendError

SENTINEL = "<extra_id_0>"


@dataclass(frozen=True)
class Frame:
    """The tokens that an answer stands between."""

    start: tuple[int, ...]
    """The ids that every answer begins with and that no model is asked for: the decoder's start, and the token that
    BART's and mBART's kind are made to say first."""
    end: int
    """The id that ends an answer."""


def frame_of(config: Any, generation: Any, tokenizer: Any) -> Frame:
    """Find a model's frame in its config, its settings for generation and its tokenizer.

    Raises:
        BackendError: they do not say how an answer begins or ends.
    """

    def said(name: str) -> int | None:
        found = (getattr(source, name, None) for source in (generation, config, tokenizer))
        first = next((value for value in found if value is not None), None)
        return first[0] if isinstance(first, list) else first

    start, forced, end = said("decoder_start_token_id"), said("forced_bos_token_id"), said("eos_token_id")
    if start is None or end is None:
        raise BackendError(
            f"the config of this encoder-decoder ({config.model_type}) has no decoder_start_token_id or eos_token_id: "
            "put them into its generation_config.json."
        )
    return Frame((start,) if forced is None else (start, forced), end)


class AnswerTokenizer(RowTokenizer):
    """A tokenizer of rows for one encoder-decoder; its rows say what the decoder is given.

    A label word or a target that the decoder says first is taken without a space before it, as the tokenizer has the
    texts that such models are trained to answer with. It ends with the end-of-sequence token; within the text it does
    not. The decoder has `decoder_room` positions of its own (none: no end of them).
    """

    def __init__(self, tokenizer: Any, max_length: int, frame: Frame, decoder_room: int | None) -> None:
        super().__init__(tokenizer, max_length, causal=False)
        self.frame, self._sentinel = frame, _sentinel(tokenizer)
        self._room = sys.maxsize if decoder_room is None else decoder_room
        self._scores_targets = True

    @staticmethod
    def _mask_of(tokenizer: Any) -> int | None:
        """Return the id of the sentinel, or of the mask token; None where there is neither."""
        sentinel = _sentinel(tokenizer)
        return sentinel if sentinel is not None else tokenizer.mask_token_id

    def row(self, row: Row, reserved: int = 0) -> TokenRow:
        """Tokenise one row; see `RowTokenizer.row`. The `reserved` positions are the decoder's: they are taken from the
        row only where the decoder is given its words.

        Raises:
            BackendError: as `RowTokenizer.row`; a mask within the text of a model that has no token for it; or the
                decoder has no room for what is reserved.
        """
        repeats = self._sentinel is None and self._shows_mask(row)
        found = super().row(row, reserved if repeats else 0)
        if self._sentinel in found.ids:
            decoder = (*self.frame.start, self._sentinel)
        elif found.read >= 0:
            decoder = (self.frame.start[0], *(i for i in found.ids[: found.read] if i >= 0))
        else:
            decoder = self.frame.start
        if len(decoder) + reserved > self._room:
            raise BackendError(
                f"the decoder begins with {len(decoder)} tokens, and a prefix and what is said next take {reserved} "
                f"positions more: this model's decoder has {self._room}."
            )
        return replace(found, read=found.read % len(found.ids), decoder=decoder)

    def target(self, row: Row, reserved: int = 0) -> tuple[int, ...]:
        """Return the token ids of a row's target as the decoder says it.

        Raises:
            BackendError: a row without a target, or a target without a token or too long for the decoder.
        """
        asked = self._with_mask(row)
        (text,) = (segment.text.strip() for segment in row if segment.kind == "target")
        ids = self._ids(" " * self._is_after_space(asked) + text)
        limit = self._answer_room - reserved
        return self._fitting_target(text, ids if self._shows_mask(asked) or not ids else [*ids, self.frame.end], limit)

    def context(self, row: Row, max_new_tokens: int, reserved: int = 0) -> TokenRow:
        """Tokenise what a target answers; see `RowTokenizer.context`.

        Raises:
            BackendError: the decoder has no room for the new tokens, or as `RowTokenizer.context`.
        """
        room = self._answer_room - reserved
        if max_new_tokens > room:
            raise BackendError(f"{max_new_tokens} new tokens were asked for; this model's decoder has room for {room}.")
        return super().context(row, max_new_tokens, reserved)

    @property
    def _answer_room(self) -> int:
        """The most tokens of an answer that nothing but the start stands before; its last one is given to nobody."""
        return self._room - len(self.frame.start) + 1

    def _shows_mask(self, row: Row) -> bool:
        kinds = [segment.kind for segment in row]
        after = row[kinds.index("mask") + 1 :] if "mask" in kinds else ()
        if not any(segment.kind != "literal" or segment.text.strip() for segment in after):
            return False
        if self._stands_for.get(self._mask) is None:
            raise BackendError(
                f"this model has no token that stands for what is missing within a text ({SENTINEL} or a mask token): "
                "put {mask} last in the template."
            )
        return True

    def _with_mask(self, row: Row) -> Row:
        """Return a row with the mask in its target's place.

        Raises:
            BackendError: the row has no target.
        """
        if [segment.kind for segment in row].count("target") != 1:
            raise BackendError("a row does not end in its target: put {target} last in the template.")
        return tuple(Segment("mask") if segment.kind == "target" else segment for segment in row)

    def _space_advice(self, after_space: bool) -> str:
        if after_space:
            return super()._space_advice(after_space)
        return (
            "Where {mask} comes last the decoder says the word first, without the space that would make it one token. "
            "Choose another word (task.label_words), or score labels by their likelihood (task.scored_by: likelihood)."
        )

    def _is_after_space(self, row: Row) -> bool:
        return self._shows_mask(row) and super()._is_after_space(row)


def row_tokenizer(kind: str, tokenizer: Any, max_length: int, config: Any, generation: Any = None) -> RowTokenizer:
    """Make the tokenizer of rows for a kind of model, from its tokenizer, its config and, where it is at hand, its
    settings for generation.

    Raises:
        BackendError: the model has no mask token, or as `frame_of`.
    """
    if kind == "encoder-decoder":
        frame = frame_of(config, generation, tokenizer)
        return AnswerTokenizer(tokenizer, max_length, frame, decoder_positions(config))
    return RowTokenizer(tokenizer, max_length, kind == "causal")


def decoder_positions(config: Any) -> int | None:
    """Return the number of positions that a decoder has; None for relative ones (T5's kind), which never end."""
    if getattr(config, "relative_attention_num_buckets", None):
        return None
    names = ("max_decoder_position_embeddings", "max_position_embeddings", "n_positions")  # the first is LED's
    return next((int(n) for n in (getattr(config, name, None) for name in names) if n is not None), None)


def _sentinel(tokenizer: Any) -> int | None:
    """Return the id of T5's first sentinel; None where the tokenizer has none."""
    found: Sequence[int] = [i for i, token in tokenizer.added_tokens_decoder.items() if str(token) == SENTINEL]
    return int(found[0]) if found else None
