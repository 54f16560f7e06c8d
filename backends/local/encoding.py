"""Rows of segments become token ids here, with the prompt's places and the position to read.

A row is tokenised in one piece, as the model would meet it: the template as it is written, newlines too, and only the
tokenizer's own rule for spaces is applied. Special tokens that the template writes are special tokens; in the text of
an example, a label word or a prompt of words they are text. The tokens of an example's text are known by their
character offsets, so that truncation never touches the template.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bbt.backend import Row, Segment
from bbt.errors import BackendError, DataError, LabelWordError

MARK = "\U0010fffd"
"""A private character that marks the names of stand-ins; no text has it (where one has, it becomes U+FFFD)."""
PROMPT, MASK = f"{MARK}prompt{MARK}", f"{MARK}mask{MARK}"


def prompt_id(j: Any) -> Any:
    """Return the negative number (or tensor of them) that stands in the token ids for soft prompt token j. The function
    is its own inverse."""
    return -1 - j


def ordinary_ids(tokenizer: Any, n_words: int) -> list[int]:
    """List the ids of all tokens that are not special and have one of the model's `n_words` word embeddings."""
    special = special_ids(tokenizer)
    return [i for i in range(min(len(tokenizer), n_words)) if i not in special]


def special_ids(tokenizer: Any) -> set[int]:
    """Collect the ids of the special tokens: those with a role, and those that were added as special."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}


@dataclass(frozen=True)
class TokenRow:
    """One tokenised row of N tokens."""

    ids: tuple[int, ...]
    """(N,) token ids, with `prompt_id(j)` where soft token j stands."""
    read: int
    """The position from whose hidden state the label words are scored."""
    truncated: bool
    """Whether the row's text was cut."""
    decoder: tuple[int, ...] = ()
    """(M,) token ids that an encoder-decoder's decoder is given, of which the last one's hidden state is read; empty
    for other models."""


@dataclass(frozen=True)
class TokenPair:
    """A target and what stands left of it."""

    context: TokenRow
    """What stands left of the target; it is read at its last token."""
    target: tuple[int, ...]
    """The target's own token ids, one at least."""


@dataclass
class Tokenised:
    """The rows of one split, tokenised."""

    rows: list[TokenRow]
    """(B,) the rows."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """The tokens of all rows, prompt tokens included."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut."""
        return sum(row.truncated for row in self.rows)


@dataclass
class TokenRows(Tokenised):
    """Tokenised rows, with the label words."""

    label_ids: list[int]
    """(K,) token ids of the label words."""


@dataclass(frozen=True)
class _Token:
    """A token, and where it comes from."""

    id: int
    """The token's id, or a negative `prompt_id`."""
    text: int | None = None
    """The number of the segment whose own text the token belongs to (none: it belongs to the template)."""


class RowTokenizer:
    """A tokenizer of rows for one model: it puts special tokens around them, and the mask where the template says.

    `causal` puts no mask: the label word is the token after the last one, so the mask must come last.

    Where a vocabulary writes the space into the token after it (GPT-2's, RoBERTa's, Llama's), one space left of
    `{mask}` belongs to the label word and one space left of `{prompt}` to the prompt's first word. So "It was {mask}"
    takes the label word "great" as the token " great", and "It was{mask}" as the token "great", as RoBERTa's released
    BBT code does; everything else in the row is equal.
    """

    def __init__(self, tokenizer: Any, max_length: int, causal: bool) -> None:
        mask_id = None if causal else self._mask_of(tokenizer)
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._causal = self._scores_targets = causal
        self._left, self._right = _special_tokens(tokenizer)
        if causal:
            self._right = []
        self._marking = _with_stand_ins(tokenizer, mask_id)
        self._prompt, self._mask = self._marking.convert_tokens_to_ids([PROMPT, MASK])
        self._specials = {tokenizer.convert_ids_to_tokens(i): i for i in special_ids(tokenizer)}
        self._stands_for = {self._marking.convert_tokens_to_ids(_stand_in(i)): i for i in self._specials.values()}
        if mask_id is not None:
            self._stands_for[self._mask] = mask_id
        names = sorted(map(re.escape, self._specials), key=len, reverse=True)
        self._special = re.compile("|".join(names) or r"(?!)")
        self._keeps_space = len(self._ids(" a")) == 1

    @staticmethod
    def _mask_of(tokenizer: Any) -> int | None:
        """Return the id of the token that stands where the template has the mask.

        Raises:
            BackendError: there is none.
        """
        if tokenizer.mask_token_id is None:
            raise BackendError("the tokenizer of this masked LM has no mask token.")
        return int(tokenizer.mask_token_id)

    @property
    def special_ids(self) -> tuple[list[int], list[int]]:
        """The ids of the tokens that stand left and right of every row's text."""
        return self._left, self._right

    def label_ids(self, label_words: Sequence[str], row: Row) -> list[int]:
        """Return the token ids (K,) of the label words as they come after what stands left of the mask in `row`.

        Raises:
            LabelWordError: words that are not one token (shows the first one's pieces), or the same one as another.
        """
        after_space = self._is_after_space(row)
        words_of: dict[int, str] = {}
        refused: dict[str, str] = {}
        for word in label_words:
            ids = self._ids(" " * after_space + word.strip())
            if not self._is_one_token(ids):
                refused[word] = self._refusal(word.strip(), ids, after_space)
            elif ids[0] in words_of:
                refused[word] = f"label words {words_of[ids[0]]!r} and {word!r} are the same token for this model."
            else:
                words_of[ids[0]] = word
        if refused:
            raise LabelWordError(next(iter(refused.values())), list(refused))
        return list(words_of)

    def rows(self, rows: Sequence[Row], label_words: Sequence[str]) -> TokenRows:
        """Tokenise one split and its label words.

        Raises:
            BackendError, DataError, LabelWordError: as `row` and `label_ids`, or there are no rows.
        """
        if not rows:
            raise BackendError("there are no rows to encode.")
        label_ids = self.label_ids(label_words, rows[0])
        n_prompt_tokens = sum(segment.n_tokens for segment in rows[0])
        return TokenRows([self.row(row) for row in rows], n_prompt_tokens, label_ids)

    def row(self, row: Row, reserved: int = 0) -> TokenRow:
        """Tokenise one row. If it is longer than the model less the `reserved` positions, its longest text is cut from
        the end, token by token.

        Raises:
            BackendError: the template alone does not fit, or a causal template goes on after the mask or is empty.
            DataError: a text that is no Unicode (half a surrogate pair).
        """
        n_prompt, read = sum(segment.n_tokens for segment in row if segment.kind == "start"), -1
        tokens = [_Token(i) for i in (*map(prompt_id, range(n_prompt)), *self._left)]
        for token in self._tokens(*self._written(row)):
            if token.id == self._mask:
                read = len(tokens)
            tokens.append(replace(token, id=self._meant(token.id, n_prompt)))
            n_prompt += token.id == self._prompt
        tokens += [_Token(i) for i in self._right]
        if not tokens:
            raise BackendError("a row is empty: there is nothing left of {mask} for a causal LM to go on from.")
        return self._truncated(tokens, read, self._max_length - reserved)

    def pairs(self, rows: Sequence[Row], reserved: int = 0) -> list[TokenPair]:
        """Tokenise rows that end in their targets, `reserved` positions shorter than the model. A target is never cut;
        rows that differ in nothing else have one context, with room for the longest of theirs.

        Raises:
            BackendError: as `target`, or as `row`.
        """
        targets, asked = [self.target(row, reserved) for row in rows], [self._with_mask(row) for row in rows]
        longest: dict[Row, int] = {}
        for row, target in zip(asked, targets, strict=True):
            longest[row] = max(len(target), longest.get(row, 0))
        contexts = {row: self.row(row, reserved + n - 1) for row, n in longest.items()}
        return [TokenPair(contexts[row], target) for row, target in zip(asked, targets, strict=True)]

    def target(self, row: Row, reserved: int = 0) -> tuple[int, ...]:
        """Return the token ids of a row's target as it comes after what stands left of it and `reserved` positions.

        Raises:
            BackendError: a row that does not end in a target, or a target without a token or too long for the model.
        """
        after_space = self._is_after_space(self._with_mask(row))
        return self._fitting_target(
            row[-1].text, self._ids(" " * after_space + row[-1].text), self._max_length - reserved
        )

    def context(self, row: Row, max_new_tokens: int, reserved: int = 0) -> TokenRow:
        """Tokenise what stands left of the target in which a row ends, leaving room for new tokens and for `reserved`
        positions.

        Raises:
            BackendError: a row that does not end in a target, or as `row`.
        """
        return self.row(self._with_mask(row), reserved + max_new_tokens - 1)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the readable text of token ids."""
        return str(self._tokenizer.decode(list(token_ids)))

    def mask_text(self, row: Row) -> str:
        """Return the text of the token that stands where the row has its mask; it is empty where none does."""
        mask_id = self._stands_for.get(self._mask)
        return self.text([mask_id]).strip() if mask_id is not None and self._shows_mask(row) else ""

    def ordinary_places(self, row: TokenRow) -> list[int]:
        """Find the places of a masked LM's row that hold words: neither special tokens nor the mask that is read."""
        return [i for i in range(len(self._left), len(row.ids) - len(self._right)) if i != row.read]

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text alone, without special tokens, as it stands after other words; its newlines are
        kept."""
        text = text.strip(" ")
        return self._ids(" " + text if self._keeps_space and not text[:1].isspace() else text)

    def _written(self, row: Row) -> tuple[str, list[tuple[int, int, int]]]:
        """Write the row as one string with stand-ins for prompt tokens, mask and the template's special tokens; with it
        comes the (number, start, end) in characters of each segment that is an example's text."""
        written, spans, after_slot, ended = "", [], True, False
        for number, segment in enumerate(row):
            if segment.kind == "start":
                continue  # such a prompt stands left of all that is written
            slot = segment.kind in ("prompt", "mask")
            if slot:
                written = written.removesuffix(" ") if number and row[number - 1].kind == "literal" else written
                piece = PROMPT * segment.n_tokens if segment.kind == "prompt" else MASK * self._shows_mask(row)
            else:
                piece = _readable(segment.text)
                # Vocabularies that put a space before the first word themselves would count this one twice.
                piece = piece.removeprefix(" ") if after_slot and not self._keeps_space else piece
            if segment.kind == "text":
                spans.append((number, len(written), len(written) + len(piece)))
            elif segment.kind == "literal":
                piece = self._special.sub(lambda match: _stand_in(self._specials[match[0]]), piece)
            if ended and (piece.strip() or segment.kind == "prompt"):
                raise BackendError("a causal LM reads the token after the template's end: put {mask} last.")
            written += "" if ended else piece
            after_slot, ended = slot, ended or (self._causal and segment.kind == "mask")
        return written, spans

    def _tokens(self, written: str, spans: list[tuple[int, int, int]]) -> list[_Token]:
        coded = self._coded(written, return_offsets_mapping=True)
        middles = [(start + end) / 2 for start, end in coded["offset_mapping"]]
        return [
            _Token(i, next((number for number, a, b in spans if a <= middle < b), None))
            for i, middle in zip(coded["input_ids"], middles, strict=True)
        ]

    def _shows_mask(self, row: Row) -> bool:
        """Tell whether a token stands where the row has its mask."""
        return not self._causal

    def _with_mask(self, row: Row) -> Row:
        """Return what stands left of a row's target, with the mask in the target's place: a causal LM's next token.

        Raises:
            BackendError: the row does not end in a target.
        """
        if not row or row[-1].kind != "target":
            raise BackendError("a row does not end in its target: put {target} last in the template.")
        return (*row[:-1], Segment("mask"))

    def _is_after_space(self, row: Row) -> bool:
        """Tell whether what comes in the mask's place begins with the space that stands left of it."""
        return self._keeps_space and _left_of_mask(row).endswith(" ")

    def _fitting_target(self, text: str, ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """Check that a target's ids are some, and not more than `limit`.

        Raises:
            BackendError: they are not.
        """
        if not ids:
            raise BackendError("a target has no token: give each row one of a word at least.")
        if len(ids) > limit:
            raise BackendError(
                f"the target {text[:40]!r}{'...' * (len(text) > 40)} takes {len(ids)} tokens, and this model has room "
                f"for {max(0, limit)}. Leave such rows out, or take fewer prefix tokens where there are some."
            )
        return tuple(ids)

    def _meant(self, token_id: int, n_prompt: int) -> int:
        """Return the id that a token of a written row stands for, after `n_prompt` soft tokens."""
        if token_id == self._prompt:
            return int(prompt_id(n_prompt))
        return self._stands_for.get(token_id, token_id)

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

    def _refusal(self, word: str, ids: list[int], after_space: bool) -> str:
        """Say what a label word is instead of one token, and what to do."""
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        advice = "Choose a word that is (task.label_words)."
        if self._scores_targets and ids:
            advice = (
                "Choose a word that is (task.label_words), or have a local model score labels of several tokens by "
                "their likelihood (task.scored_by: likelihood)."
            )
        if self._keeps_space and self._is_one_token(self._ids(" " * (not after_space) + word)):
            advice = self._space_advice(after_space)
        return f"label word {word!r} is not one token of this model but {len(ids)}: {pieces}. {advice}"

    def _space_advice(self, after_space: bool) -> str:
        """Say what to do about a label word that is one token the other way, without or with its space."""
        here, there = ("with", "without") if after_space else ("without", "with")
        return (
            f"The template has {{mask}} {here} a space before it, and so the word is taken {here} its space; "
            f"{there} it the word is one token. Choose another word (task.label_words) or change the template."
        )

    def _is_one_token(self, ids: list[int]) -> bool:
        return len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id

    def _ids(self, text: str) -> list[int]:
        return list(self._coded(_readable(text))["input_ids"])

    def _coded(self, text: str, **options: Any) -> Any:
        """Tokenise a text; nothing else here calls the tokenizer on one. Special tokens in the text are text, all but
        the stand-ins."""
        return self._marking(text, add_special_tokens=False, split_special_tokens=True, verbose=False, **options)


def _readable(text: str) -> str:
    """Return the text without the character that stand-ins are made of.

    Raises:
        DataError: it holds half a surrogate pair, which no tokenizer reads.
    """
    half = re.search("[\ud800-\udfff]", text)
    if half:
        shown = text[max(0, half.start() - 40) : half.end() + 20]
        raise DataError(
            f"a text holds half of a character ({half[0]!r}, a lone surrogate), which no tokenizer reads: {shown!r}. "
            "Mend or drop this row."
        )
    return text.replace(MARK, "\ufffd")


def _stand_in(name: Any) -> str:
    return f"{MARK}{name}{MARK}"


def _with_stand_ins(tokenizer: Any, mask_id: int | None) -> Any:
    """Copy the tokenizer and teach it `PROMPT`, `MASK` and a stand-in for every special token: tokens that are found in
    a text although they are not special, and swallow the spaces that their originals swallow."""
    from tokenizers import AddedToken

    def token(name: str, original: int | None) -> AddedToken:
        its = tokenizer.added_tokens_decoder.get(original)
        sides = {"lstrip": its.lstrip, "rstrip": its.rstrip} if its else {}
        return AddedToken(name, normalized=False, special=False, **sides)

    copied = copy.deepcopy(tokenizer)
    stand_ins = [token(PROMPT, None), token(MASK, mask_id)]
    copied.add_tokens([*stand_ins, *(token(_stand_in(i), i) for i in sorted(special_ids(tokenizer)))])
    return copied


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Find the ids that the tokenizer puts left and right of a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _cut_places(texts: Sequence[int | None], excess: int) -> set[int]:
    """Choose the places of the tokens to drop, `excess` of them if the texts have so many. Each is the last one of the
    text that is longest by then."""
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        if text is not None:
            places.setdefault(text, []).append(place)
    cut: set[int] = set()
    while len(cut) < excess and any(places.values()):
        cut.add(max(places.values(), key=len).pop())
    return cut


def _left_of_mask(row: Row) -> str:
    """Return the template's text left of the mask; it is empty where an example's own text or the prompt stands beside
    the mask."""
    kinds = [segment.kind for segment in row]
    left = row[kinds.index("mask") - 1] if "mask" in kinds[1:] else None
    return left.text if left and left.kind == "literal" else ""
