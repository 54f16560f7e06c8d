"""What a run would send to its backend, known without calling it: from a tokenizer and a config alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.local.encoding import RowTokenizer
from backends.local.hub import where
from backends.local.loading import PRECISIONS, kind_of, resolve
from bbt.backend import Row
from bbt.config import Config
from bbt.estimate import Wire

CHARACTERS_PER_TOKEN = 4
"""Where there is no tokenizer: the rule of thumb for English."""


@dataclass(frozen=True)
class ModelGauge:
    """Rows measured for one config; `count` gives a row's tokens."""

    config: Config
    kind: str
    hidden_size: int
    counted: str
    count: Callable[[Row], int]

    def tokens(self, rows: Sequence[Row]) -> int:
        """Of these rows, their prompt tokens included."""
        return sum(map(self.count, rows))

    def wire(self, rows: Sequence[Row], n_labels: int) -> Wire:
        """Bytes of one query on these rows, as the backend sends them; heads of HTTP are estimates."""
        measure = WIRES.get(self.config.model.backend, _arrays)
        return measure(self, rows, n_labels)


def open_gauge(config: Config) -> ModelGauge:
    """The gauge of the config's model; of a text-only API that of its vocabulary.

    A model whose tokenizer is not to be had is taken for a causal LM and measured in characters.
    """
    options = config.model.options
    model = options.get("vocabulary", "gpt2-mini") if config.model.backend == "text-api" else config.model.name
    try:
        return _measured(config, str(model), options)
    except (OSError, ValueError, KeyError):
        return ModelGauge(config, str(options.get("kind", "causal")), 0, "as four characters each", _by_characters)


def _measured(config: Config, model: str, options: Mapping[str, Any]) -> ModelGauge:
    from transformers import AutoConfig, AutoTokenizer

    source = resolve(model)
    files = where(source, options.get("revision"))
    facts = AutoConfig.from_pretrained(source, **files)
    tokenizer = AutoTokenizer.from_pretrained(source, **files)
    kind, text = options.get("kind") or kind_of(facts), facts.get_text_config()
    limit = min(int(getattr(text, "max_position_embeddings", None) or 10**9), int(tokenizer.model_max_length))
    rows = RowTokenizer(tokenizer, 10**9 if config.model.backend == "text-api" else limit, kind == "causal")
    counted = f"by the tokenizer of {model}"
    return ModelGauge(config, kind, int(text.hidden_size), counted, lambda row: len(rows.row(row).ids))


def _by_characters(row: Row) -> int:
    return sum(segment.n_tokens + -(-len(segment.text) // CHARACTERS_PER_TOKEN) for segment in row)


def _arrays(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """The prompt's embeddings, and a float32 a label."""
    n_tokens = sum(segment.n_tokens for segment in rows[0])
    return Wire(4 * n_tokens * gauge.hidden_size, 4 * len(rows) * n_labels)


def _latents(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """z in float64; rows and space are sent once."""
    return Wire(8 * gauge.config.prompt.intrinsic_dim, 4 * len(rows) * n_labels)


def _embeddings(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """Every row whole: base64 of its embeddings, or for prompts of words its token ids."""
    down = (370 + 30 * n_labels) * len(rows)
    if gauge.config.method.name != "black-box":
        return Wire(6 * gauge.tokens(rows) + 10 * len(rows), down)
    size = PRECISIONS.get(str(gauge.config.model.options.get("precision", "fp32")), PRECISIONS["fp32"]).itemsize
    return Wire(4 / 3 * (size * gauge.hidden_size * gauge.tokens(rows) + 1500 * len(rows)), down)


def _text(gauge: ModelGauge, rows: Sequence[Row], n_labels: int) -> Wire:
    """A request a row."""
    options = gauge.config.model.options
    listed = 0 if options.get("scores") == "answers" else int(options.get("top_logprobs", 20))
    characters = CHARACTERS_PER_TOKEN * gauge.tokens(rows)
    return Wire(characters + 300 * len(rows), (480 + 28 * listed) * len(rows))


WIRES: dict[str, Callable[[ModelGauge, Sequence[Row], int], Wire]] = {
    "http": _latents,
    "text-api": _text,
    "vllm": _embeddings,
}
"""Backends that do not exchange plain arrays."""
