"""A gauge measures what a run would send to its backend without calling it: from a tokenizer and a config alone."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.answers import row_tokenizer
from backends.local.encoding import RowTokenizer, TokenPair, TokenRow
from backends.local.hub import where
from backends.local.source import kind_of, position_limit, resolve
from backends.wires import WIRES, ArrayWire
from bbt.backend import Row
from bbt.runs.estimate import Measured, PlannedQueries, Wire
from bbt.settings import ModelConfig

CHARACTERS_PER_TOKEN = 4
"""The rule of thumb for English, used where there is no tokenizer."""


@dataclass(frozen=True)
class ModelGauge:
    """A gauge of the rows of one run on one model (see `bbt.runs.estimate.Gauge`)."""

    model: ModelConfig
    """The model, and the backend that runs it."""
    plan: PlannedQueries
    """The queries that the run has planned."""
    kind: str
    """The language model's kind: masked, causal or encoder-decoder."""
    hidden_size: int
    """H (0: it is not known)."""
    max_length: int
    """The most tokens of a row."""
    tokenizer: RowTokenizer | None
    """The tokenizer of rows (none: four characters are taken for a token)."""
    counted: str
    """How tokens are counted, in words for the table."""

    @property
    def tells_likelihoods(self) -> bool:
        """Whether the backend tells how likely a target is."""
        return self.model.backend != "text-api"

    def encode(self, rows: Sequence[Row]) -> Measured:
        """Measure rows whose label words are scored."""
        return _measured(rows, [self._row(row) for row in rows])

    def encode_pairs(self, rows: Sequence[Row]) -> Measured:
        """Measure rows whose targets are scored."""
        if self.tokenizer is not None:
            pairs = self.tokenizer.pairs(rows)
        else:
            pairs = [TokenPair(self._row(_left(row)), tuple(range(max(1, _by_characters([row[-1]]))))) for row in rows]
        return _measured(rows, [pair.context for pair in pairs], [len(pair.target) for pair in pairs])

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> Measured:
        """Measure rows that are written on."""
        if self.tokenizer is None:
            return _measured(rows, [self._row(_left(row)) for row in rows])
        return _measured(rows, [self.tokenizer.context(row, max_new_tokens) for row in rows])

    def scores_wire(self, rows: Measured, n_scores: int, searched: bool) -> Wire:
        """How many bytes one query on these rows is."""
        d = self.plan.intrinsic_dim if searched else None
        return self._wire.scores(rows, n_scores, d)

    def texts_wire(self, rows: Measured, max_new_tokens: int) -> Wire:
        """How many bytes it is at most to have a text written after each of these rows."""
        return self._wire.texts(rows, max_new_tokens)

    @property
    def _wire(self) -> ArrayWire:
        made = WIRES.get(self.model.backend, ArrayWire)
        return made(self.hidden_size, self.plan.in_words, self.model.options)

    def _row(self, row: Row) -> TokenRow:
        if self.tokenizer is not None:
            return self.tokenizer.row(row)
        n = sum(map(_by_characters, ([segment] for segment in row)))
        return TokenRow(tuple(range(n)), n - 1, False)


def _left(row: Row) -> Row:
    """What stands beside a row's target."""
    return tuple(segment for segment in row if segment.kind != "target")


def _by_characters(row: Sequence[Any]) -> int:
    return sum(segment.n_tokens + -(-len(segment.text) // CHARACTERS_PER_TOKEN) for segment in row)


def _measured(rows: Sequence[Row], contexts: Sequence[TokenRow], n_target: Sequence[int] = ()) -> Measured:
    """The sizes of rows that are tokenised so, with the numbers of their targets' tokens where they have some."""
    lengths = [len(context.ids) for context in contexts]
    counts = n_target or [1] * len(contexts)
    return Measured(
        len(contexts),
        sum(lengths) + sum(n_target),
        sum(context.truncated for context in contexts),
        sum(segment.n_tokens for segment in rows[0]) if rows else 0,
        sum(counts),
        sum(length * n + n * (n - 1) // 2 for length, n in zip(lengths, counts, strict=True)),
    )


def open_gauge(model: ModelConfig, plan: PlannedQueries) -> ModelGauge:
    """Open the gauge of a model for what a run has planned; for a text-only API it is that of its vocabulary.

    A model whose tokenizer is not to be had is taken for a causal LM and measured in characters.
    """
    options = model.options
    name = options.get("vocabulary", "gpt2-mini") if model.backend == "text-api" else model.name
    try:
        return _opened(model, plan, str(name))
    except (OSError, ValueError, KeyError):
        kind = str(options.get("kind", "causal"))
        return ModelGauge(model, plan, kind, 0, sys.maxsize, None, "as four characters each")


def _opened(model: ModelConfig, plan: PlannedQueries, name: str) -> ModelGauge:
    from transformers import AutoConfig, AutoTokenizer

    options, source = model.options, resolve(name)
    files = where(source, options.get("revision"))
    facts = AutoConfig.from_pretrained(source, **files)
    tokenizer = AutoTokenizer.from_pretrained(source, **files)
    kind, text = options.get("kind") or kind_of(facts), facts.get_text_config()
    limit = min(position_limit(text) or 10**9, int(tokenizer.model_max_length))
    limit = 10**9 if model.backend == "text-api" else limit
    rows = row_tokenizer(kind, tokenizer, limit, facts)
    return ModelGauge(model, plan, kind, int(text.hidden_size), limit, rows, f"by the tokenizer of {name}")
