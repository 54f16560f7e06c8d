"""Models of a known shape with random weights serve to measure speed and memory where no weights are at hand.

`random:roberta-large` names a shape of `SHAPES`; `random:FOLDER` takes the configuration, and the tokenizer if it
has one, of a folder, a bundled model or a hub name. A shape comes with the tokenizer of a bundled model.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backends.local.answers import SENTINEL
from backends.local.hub import where
from backends.models import bundled_models
from bbt.errors import BackendError, unknown

if TYPE_CHECKING:
    from backends.local.source import Kind

PREFIX = "random:"
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_T5 = {"vocab_size": 32128, "decoder_start_token_id": 0}
_LLAMA = {"rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def _llama(n_words: int, hidden: int, wide: int, n_layers: int, n_heads: int, n_key_heads: int) -> dict[str, Any]:
    """The sizes of a Llama shape as its configuration names them."""
    return {
        "vocab_size": n_words,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_key_heads,
    }


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", {}),
    "bert-large": ("bert", _LARGE),
    "roberta-base": ("roberta", _ROBERTA),
    "roberta-large": ("roberta", {**_ROBERTA, **_LARGE}),
    "gpt2": ("gpt2", {}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "t5-small": ("t5", _T5),
    "t5-base": ("t5", {**_T5, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "t5-large": ("t5", {**_T5, "d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16}),
    "smollm2-135m": ("llama", {**_LLAMA, **_llama(49152, 576, 1536, 30, 9, 3), "tie_word_embeddings": True}),
    "smollm2-1.7b": ("llama", {**_LLAMA, **_llama(49152, 2048, 8192, 24, 32, 32), "tie_word_embeddings": True}),
    "llama-3-8b": ("llama", {**_LLAMA, **_llama(128256, 4096, 14336, 32, 32, 8)}),
}
"""By name, the model type and what differs from its default configuration, as the published files have it."""


def random_config(name: str, revision: str | None = None) -> Any:
    """The configuration of a shape, a bundled model, a folder or a hub name.

    Raises:
        BackendError: an unknown shape.
        OSError: a folder or hub name without a configuration.
    """
    from transformers import AutoConfig

    if name in SHAPES:
        model_type, sizes = SHAPES[name]
        return AutoConfig.for_model(model_type, **sizes)
    if name not in bundled_models() and not Path(name).is_dir() and "/" not in name:
        raise BackendError(unknown("shape", name, [*SHAPES, *bundled_models()]) + " Or give a folder or hub name.")
    source = str(bundled_models().get(name, name))
    return AutoConfig.from_pretrained(source, **where(source, revision))


def random_tokenizer(name: str, kind: "Kind", revision: str | None = None) -> Any:
    """The tokenizer beside the configuration, or a bundled model's for a shape."""
    from transformers import AutoTokenizer

    bundled = bundled_models()
    if name in SHAPES or (Path(name).is_dir() and not (Path(name) / "tokenizer.json").is_file()):
        tokenizer = AutoTokenizer.from_pretrained(bundled["minilm-mlm" if kind == "masked" else "gpt2-mini"])
        if kind == "encoder-decoder":
            tokenizer.add_tokens([SENTINEL], special_tokens=True)
        return tokenizer
    source = str(bundled.get(name, name))
    return AutoTokenizer.from_pretrained(source, **where(source, revision))


def random_model(auto: Any, config: Any, device: torch.device) -> Any:
    """Make the model with the random weights of seed 0, drawn in fp32 so that every precision rounds the same ones."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        return auto.from_config(config, dtype=torch.float32)
