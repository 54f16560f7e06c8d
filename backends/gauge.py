"""A gauge measures what a run would send to its backend without calling it: from a tokenizer and a config alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.answers import row_tokenizer
from backends.local.hub import where
from backends.local.source import kind_of, position_limit, resolve
from bbt.backend import Row
from bbt.runs.estimate import PlannedQueries, Wire
from bbt.settings import ModelConfig

CHARACTERS_PER_TOKEN = 4
"""The rule of thumb for English, used where there is no tokenizer."""


@dataclass(frozen=True)
class ModelGauge:
    """A gauge of the rows of one run on one model."""

    model: ModelConfig
    """The model, and the backend that runs it."""
    plan: PlannedQueries
    """The queries that the run has planned."""
    kind: str
    """The language model's kind: masked, causal or encoder-decoder."""
    hidden_size: int
    """H (0: it is not known)."""
    counted: str
    """How tokens are counted, in words for the table."""
    count: Callable[[Row], int]
    """A function that gives the number of a row's tokens."""

    def tokens(self, rows: Sequence[Row]) -> int:
        """The number of tokens of these rows, their prompt tokens included."""
        return sum(map(self.count, rows))

    def wire(self, rows: Sequence[Row], n_labels: int) -> Wire:
        """How many bytes one query on these rows is, as the backend sends them; the sizes of HTTP's heads are
        estimates."""
        measure = WIRES.get(self.model.backend, _arrays)
        return measure(self, rows, n_labels)


def open_gauge(model: ModelConfig, plan: PlannedQueries) -> ModelGauge:
    """Open the gauge of a model for what a run has planned; for a text-only API it is that of its vocabulary.

    A model whose tokenizer is not to be had is taken for a causal LM and measured in characters.
    """
    options = model.options
    name = options.get("vocabulary", "gpt2-mini") if model.backend == "text-api" else model.name
    try:
        return _measured(model, plan, str(name), options)
    except (OSError, ValueError, KeyError):
        return ModelGauge(model, plan, str(options.get("kind", "causal")), 0, "as four characters each", _by_characters)


def _measured(model: ModelConfig, plan: PlannedQueries, name: str, options: Mapping[str, Any]) -> ModelGauge:
    from transformers import AutoConfig, AutoTokenizer

    source = resolve(name)
    files = where(source, options.get("revision"))
    facts = AutoConfig.from_pretrained(source, **files)
    tokenizer = AutoTokenizer.from_pretrained(source, **files)
    kind, text = options.get("kind") or kind_of(facts), facts.get_text_config()
    limit = min(position_limit(text) or 10**9, int(tokenizer.model_max_length))
    limit = 10**9 if model.backend == "text-api" else limit
    rows = row_tokenizer(kind, tokenizer, limit, facts)
    counted = f"by the tokenizer of {name}"
    return ModelGauge(model, plan, kind, int(text.hidden_size), counted, lambda row: len(rows.row(row).ids))


def _by_characters(row: Row) -> int:
    return sum(segment.n_tokens + -(-len(segment.text) // CHARACTERS_PER_TOKEN) for segment in row)


def _arrays(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The bytes of a query that sends the prompt's embeddings and receives a float32 for each label."""
    n_tokens = sum(segment.n_tokens for segment in rows[0])
    return Wire(4 * n_tokens * gauge.hidden_size, 4 * len(rows) * n_labels)


def _latents(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The bytes of a query that sends z in float32; rows and space are sent once."""
    if gauge.plan.intrinsic_dim is None:
        return _arrays(gauge, rows, n_labels)
    return Wire(4 * gauge.plan.intrinsic_dim, 4 * len(rows) * n_labels)


def _embeddings(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The bytes of a query that sends every row whole: base64 of its embeddings, or its token ids for prompts of
    words."""
    down = (370 + 30 * n_labels) * len(rows)
    if gauge.plan.in_words:
        return Wire(6 * gauge.tokens(rows) + 10 * len(rows), down)
    size = 2 if gauge.model.options.get("precision") in ("bf16", "fp16") else 4
    return Wire(4 / 3 * (size * gauge.hidden_size * gauge.tokens(rows) + 1500 * len(rows)), down)


def _text(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The bytes of a query that is a request for each row."""
    options = gauge.model.options
    listed = 0 if options.get("scores") == "answers" else int(options.get("top_logprobs", 20))
    characters = CHARACTERS_PER_TOKEN * gauge.tokens(rows)
    return Wire(characters + 300 * len(rows), (480 + 28 * listed) * len(rows))


WIRES: dict[str, Callable[[ModelGauge, Sequence[Row], int], Wire]] = {
    "http": _latents,
    "text-api": _text,
    "vllm": _embeddings,
}
"""How a query is measured for the backends that do not exchange plain arrays, by name."""
