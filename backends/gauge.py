"""What a run would send to its backend, known without calling it: from a tokenizer and a config alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.encoding import RowTokenizer
from backends.local.hub import where
from backends.local.source import kind_of, resolve
from bbt.backend import Row
from bbt.runs.estimate import PlannedQueries, Wire
from bbt.settings import ModelConfig

CHARACTERS_PER_TOKEN = 4
"""Where there is no tokenizer: the rule of thumb for English."""


@dataclass(frozen=True)
class ModelGauge:
    """Rows of one run on one model, measured; `count` gives a row's tokens."""

    model: ModelConfig
    plan: PlannedQueries
    kind: str
    hidden_size: int
    counted: str
    count: Callable[[Row], int]

    def tokens(self, rows: Sequence[Row]) -> int:
        """Of these rows, their prompt tokens included."""
        return sum(map(self.count, rows))

    def wire(self, rows: Sequence[Row], n_labels: int) -> Wire:
        """Bytes of one query on these rows, as the backend sends them; heads of HTTP are estimates."""
        measure = WIRES.get(self.model.backend, _arrays)
        return measure(self, rows, n_labels)


def open_gauge(model: ModelConfig, plan: PlannedQueries) -> ModelGauge:
    """The gauge of a model for what a run has planned; of a text-only API that of its vocabulary.

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
    limit = min(int(getattr(text, "max_position_embeddings", None) or 10**9), int(tokenizer.model_max_length))
    rows = RowTokenizer(tokenizer, 10**9 if model.backend == "text-api" else limit, kind == "causal")
    counted = f"by the tokenizer of {name}"
    return ModelGauge(model, plan, kind, int(text.hidden_size), counted, lambda row: len(rows.row(row).ids))


def _by_characters(row: Row) -> int:
    return sum(segment.n_tokens + -(-len(segment.text) // CHARACTERS_PER_TOKEN) for segment in row)


def _arrays(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The prompt's embeddings, and a float32 a label."""
    n_tokens = sum(segment.n_tokens for segment in rows[0])
    return Wire(4 * n_tokens * gauge.hidden_size, 4 * len(rows) * n_labels)


def _latents(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """z in float32; rows and space are sent once."""
    if gauge.plan.intrinsic_dim is None:
        return _arrays(gauge, rows, n_labels)
    return Wire(4 * gauge.plan.intrinsic_dim, 4 * len(rows) * n_labels)


def _embeddings(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """Every row whole: base64 of its embeddings, or for prompts of words its token ids."""
    down = (370 + 30 * n_labels) * len(rows)
    if gauge.plan.in_words:
        return Wire(6 * gauge.tokens(rows) + 10 * len(rows), down)
    size = 2 if gauge.model.options.get("precision") in ("bf16", "fp16") else 4
    return Wire(4 / 3 * (size * gauge.hidden_size * gauge.tokens(rows) + 1500 * len(rows)), down)


def _text(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """A request a row."""
    options = gauge.model.options
    listed = 0 if options.get("scores") == "answers" else int(options.get("top_logprobs", 20))
    characters = CHARACTERS_PER_TOKEN * gauge.tokens(rows)
    return Wire(characters + 300 * len(rows), (480 + 28 * listed) * len(rows))


WIRES: dict[str, Callable[[ModelGauge, Sequence[Row], int], Wire]] = {
    "http": _latents,
    "text-api": _text,
    "vllm": _embeddings,
}
"""Backends that do not exchange plain arrays."""
