"""A template's rows are described here for plain `transformers`: as a text that the bare tokenizer splits as bbt
does."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backends.local.encoding import RowTokenizer
from bbt.backend import PlainText, Row, Segment
from bbt.errors import BackendError

PROBES = (("a film", "it was slow"), ("Two  words, 3.5 % - and\nmore!", "Zo\u00eb"), ("1", "?"))
"""The texts and second texts on which bbt and the bare tokenizer must agree."""


def plain_text(
    tokenizer: Any,
    rows: RowTokenizer,
    render: Callable[[str, str], Row],
    label_words: Sequence[str],
    targets: Sequence[str],
) -> PlainText:
    """Describe the rows; see `PlainBackend.plain_text`.

    Raises:
        BackendError: the prompt stands neither at the start nor before everything else, or no text has these tokens.
    """
    row = render("{text}", "{text_pair}")
    written = _written(row, rows.mask_text(row))
    decoder = rows.row(row).decoder
    leading = tuple(rows.special_ids[0]) if _has_prompt_inside(row) else ()
    for text, adds in _candidates(written, tokenizer, rows, bool(leading) or _has_prompt_inside(row)):
        if all(
            _agrees(tokenizer, rows, render(*probe), text.format(text=probe[0], text_pair=probe[1]), adds, leading)
            and rows.row(render(*probe)).decoder == decoder
            for probe in PROBES
        ):
            said = tuple(rows.target(_with_target(row, target)) for target in targets)
            return PlainText(text, adds, leading, tuple(rows.label_ids(label_words, row)), decoder, said)
    raise BackendError(
        "no text has the tokens of these rows, so that no export would be exact; tune with prompt.placement: start, "
        "and for a model of BART's kind with {mask} last."
    )


def _with_target(row: Row, target: str) -> Row:
    """Put a target into the mask's place."""
    return tuple(Segment("target", target.strip()) if segment.kind == "mask" else segment for segment in row)


def _has_prompt_inside(row: Row) -> bool:
    """Whether soft tokens stand right of the tokenizer's own special tokens.

    Raises:
        BackendError: they do not stand before all that is written, or stand in several places.
    """
    places = [i for i, segment in enumerate(row) if segment.kind == "prompt" and segment.n_tokens]
    if not places:
        return False
    if places != [0]:
        raise BackendError(
            "the prompt stands after the first words of the template, or in several places; PEFT and the like have it "
            "first. Tune with prompt.placement: start, or a template that begins with {prompt}."
        )
    return True


def _written(row: Row, mask: str) -> str:
    """Write the row as a text to be formatted. The space before a causal LM's label word belongs to the word."""
    pieces = {"literal": lambda s: s.text.replace("{", "{{").replace("}", "}}"), "text": lambda s: s.text}
    pieces["whole"] = pieces["text"]
    written = ""
    for segment in row:
        if segment.kind == "mask":
            written = written + mask if mask else written.removesuffix(" ")
        elif segment.kind in pieces:
            written += pieces[segment.kind](segment)
    return written


def _candidates(written: str, tokenizer: Any, rows: RowTokenizer, inside: bool) -> Iterator[tuple[str, bool]]:
    """Yield texts, the plainest first, and whether the tokenizer is to add its special tokens."""
    left, right = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in rows.special_ids)
    left = "" if inside else left
    for text in dict.fromkeys((written, written.removeprefix(" "))):
        if not inside:
            yield text, True
        yield left + text + right, False


def _agrees(tokenizer: Any, rows: RowTokenizer, row: Row, text: str, adds: bool, leading: Sequence[int]) -> bool:
    """Whether the text has the row's tokens, apart from soft ones and those that stand before them."""
    ids = [i for i in rows.row(row).ids if i >= 0]
    return ids == [*leading, *tokenizer(text, add_special_tokens=adds)["input_ids"]]
