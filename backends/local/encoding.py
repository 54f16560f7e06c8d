"""Rows of segments -> token ids with the prompt's places and the position to read.

A run of text between two slots is tokenised in one piece, as the model would meet it; the tokens that come from
the example's own text are known by their character offsets, so that truncation never touches the template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bbt.backend import Row, Segment
from bbt.errors import BackendError, LabelWordError


def prompt_id(j: Any) -> Any:
    """The negative number (or tensor of them) that stands in the token ids for soft prompt token j; its own
    inverse."""
    return -1 - j


@dataclass(frozen=True)
class TokenRow:
    """One row: `ids` with `prompt_id(j)` where soft token j stands; the label words are scored from the hidden
    state at `read`."""

    ids: tuple[int, ...]
    read: int
    truncated: bool


@dataclass
class TokenRows:
    """One split, tokenised, with the label words' ids."""

    rows: list[TokenRow]
    label_ids: list[int]
    n_prompt_tokens: int

    @property
    def n_examples(self) -> int:
        """B."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows, prompt tokens included."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut."""
        return sum(row.truncated for row in self.rows)


@dataclass(frozen=True)
class _Token:
    """`text` is the number of the segment whose own text the token belongs to; None: the template."""

    id: int
    text: int | None = None


class RowTokenizer:
    """Tokenises rows for one model: special tokens around, the mask where the template says.

    `causal` puts no mask: the label word is the token after the last one, so the mask must come last.
    """

    def __init__(self, tokenizer: Any, max_length: int, causal: bool) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._causal = causal
        self._left, self._right = _special_tokens(tokenizer)
        if causal:
            self._right = []
        elif tokenizer.mask_token_id is None:
            raise BackendError("the tokenizer of this masked LM has no mask token.")
        self._keeps_space = len(self._ids(" a")) == 1

    def label_ids(self, label_words: Sequence[str], row: Row) -> list[int]:
        """Token ids of the label words as they come after what stands left of the mask in `row`.

        Raises:
            LabelWordError: a word is not one token (shows its pieces), or two words are the same token.
        """
        after_space = self._keeps_space and _left_of_mask(row).endswith(" ")
        ids = [self._one_token((" " if after_space else "") + word.strip()) for word in label_words]
        for i, word in enumerate(label_words):
            if ids[i] in ids[:i]:
                twin = label_words[ids.index(ids[i])]
                raise LabelWordError(f"label words {twin!r} and {word!r} are the same token for this model.")
        return ids

    def rows(self, rows: Sequence[Row], label_words: Sequence[str]) -> TokenRows:
        """Tokenise one split and its label words.

        Raises:
            BackendError, LabelWordError: as `row` and `label_ids`, or there are no rows.
        """
        if not rows:
            raise BackendError("there are no rows to encode.")
        label_ids = self.label_ids(label_words, rows[0])
        n_prompt_tokens = sum(segment.n_tokens for segment in rows[0])
        return TokenRows([self.row(row) for row in rows], label_ids, n_prompt_tokens)

    def row(self, row: Row, reserved: int = 0) -> TokenRow:
        """Tokenise one row; if it is longer than the model less the `reserved` positions, its longest text is cut
        from the end, token by token.

        Raises:
            BackendError: the template alone does not fit, or a causal template goes on after the mask or is empty.
        """
        tokens = [_Token(i) for i in self._left]
        read, run, n_prompt = -1, [], 0
        for number, segment in enumerate(row):
            if segment.kind in ("literal", "text"):
                run.append((number, segment))
                continue
            tokens += self._run(run, first=len(tokens) == len(self._left))
            run = []
            if segment.kind == "prompt":
                tokens += [_Token(prompt_id(n_prompt + j)) for j in range(segment.n_tokens)]
                n_prompt += segment.n_tokens
            elif not self._causal:
                tokens.append(_Token(self._tokenizer.mask_token_id))
                read = len(tokens) - 1
        tail = self._run(run, first=False)
        if self._causal and (tail or row[-1].kind == "prompt"):
            raise BackendError("a causal LM reads the token after the template's end: put {mask} last.")
        tokens += tail + [_Token(i) for i in self._right]
        if not tokens:
            raise BackendError("a row is empty: there is nothing left of {mask} for a causal LM to go on from.")
        return self._truncated(tokens, read, self._max_length - reserved)

    def text(self, token_ids: Sequence[int]) -> str:
        """Token ids as readable text."""
        return str(self._tokenizer.decode(list(token_ids)))

    def ordinary_places(self, row: TokenRow) -> list[int]:
        """Places of a masked LM's row that hold words: neither special tokens nor the mask that is read."""
        return [i for i in range(len(self._left), len(row.ids) - len(self._right)) if i != row.read]

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text alone, without special tokens, as it stands after other words."""
        return self._ids(" " + text.strip() if self._keeps_space else text.strip())

    def _run(self, run: list[tuple[int, Segment]], first: bool) -> list[_Token]:
        """Tokens of adjacent literals and texts, numbered as in the row."""
        text = "".join(segment.text for _, segment in run).rstrip()
        lead = len(text) - len(text.lstrip())
        # Byte-level vocabularies write the space into the next token; others would make a token of it.
        start = lead - 1 if lead and self._keeps_space and not first else lead
        if not text[start:]:
            return []
        coded = self._tokenizer(text[start:], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = _text_spans(run)
        middles = [start + (a + b) / 2 for a, b in coded["offset_mapping"]]
        return [
            _Token(i, next((number for number, a, b in spans if a <= middle < b), None))
            for i, middle in zip(coded["input_ids"], middles, strict=True)
        ]

    def _truncated(self, tokens: list[_Token], read: int, limit: int) -> TokenRow:
        cut = _cut_places([token.text for token in tokens], len(tokens) - limit)
        if len(tokens) - len(cut) > limit:
            raise BackendError(
                f"the template with its prompt takes {len(tokens) - len(cut)} tokens, the model {limit}. "
                "Take fewer prompt tokens."
            )
        kept = [token.id for i, token in enumerate(tokens) if i not in cut]
        read = len(kept) - 1 if self._causal else read - sum(i < read for i in cut)
        return TokenRow(tuple(kept), read, truncated=bool(cut))

    def _one_token(self, word: str) -> int:
        ids = self._ids(word)
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            pieces = self._tokenizer.convert_ids_to_tokens(ids)
            raise LabelWordError(
                f"label word {word.strip()!r} is not one token of this model but {len(ids)}: {pieces}. "
                "Choose a word that is (task.label_words)."
            )
        return ids[0]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts left and right of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _cut_places(texts: Sequence[int | None], excess: int) -> set[int]:
    """Places of the tokens to drop, `excess` of them if the texts have so many: always the last one of the text that
    is longest by then."""
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        if text is not None:
            places.setdefault(text, []).append(place)
    cut: set[int] = set()
    while len(cut) < excess and any(places.values()):
        cut.add(max(places.values(), key=len).pop())
    return cut


def _text_spans(run: Sequence[tuple[int, Segment]]) -> list[tuple[int, int, int]]:
    """(number, start, end) in characters of the run's own texts in the joined string."""
    spans, position = [], 0
    for number, segment in run:
        if segment.kind == "text":
            spans.append((number, position, position + len(segment.text)))
        position += len(segment.text)
    return spans


def _left_of_mask(row: Row) -> str:
    kinds = [segment.kind for segment in row]
    return row[kinds.index("mask") - 1].text if "mask" in kinds[1:] else ""
