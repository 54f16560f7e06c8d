"""The tokenizer and the word embeddings of a causal LM are read here, without the rest of its weights.

They are what a client needs to embed text itself. Of a sharded checkpoint only the file that holds the matrix is read
(or fetched from the hub), and of that file only the matrix.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.local.encoding import ordinary_ids
from backends.local.hub import where
from backends.local.source import check_tokenizer, checked_kind, quiet, resolve
from backends.openai.tensors import read_matrix
from backends.openai.tokenizer import plain_tokenizer
from bbt.errors import BackendError
from bbt.types import Prompts

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Plain:
    """An architecture whose config.json is read without the code of `transformers`."""

    model_type: str
    """The model type that its config.json names."""
    words: str
    """The name of its word embeddings in a checkpoint."""
    layers: str = "num_hidden_layers"
    """The key of its number of layers in config.json."""
    length: str = "max_position_embeddings"
    """The key of its number of positions in config.json."""


PLAIN = {
    "GPT2LMHeadModel": Plain("gpt2", "transformer.wte.weight", "n_layer", "n_positions"),
    "GPTNeoXForCausalLM": Plain("gpt_neox", "gpt_neox.embed_in.weight"),
    "LlamaForCausalLM": Plain("llama", "model.embed_tokens.weight"),
}
"""The plain architectures by name. What is not here, or brings a tokenizer of its own class, is read by `transformers`,
whose import takes some seconds."""


@dataclass(frozen=True)
class Words:
    """The tokenizer and the word embeddings of a causal LM, with facts from its config."""

    tokenizer: Any
    """The tokenizer, of `transformers` or a `PlainTokenizer`."""
    matrix: NDArray[np.float32]
    """The word embeddings (V, H) in fp32, as the checkpoint holds them."""
    architecture: str
    """The model's class as its config names it."""
    n_layers: int
    """The number of layers L."""
    max_length: int
    """The most tokens that a row may have."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over all word embeddings, with the architecture in front."""
        digest = hashlib.sha256(self.architecture.encode())
        digest.update(self.matrix.tobytes())
        return digest.hexdigest()[:12]

    @property
    def embedding_std(self) -> float:
        """The standard deviation over all numbers of the word embeddings."""
        return float(np.float32(self.matrix.std(dtype=np.float64, ddof=1)))

    def embedded(self, token_ids: Sequence[int]) -> Prompts:
        """Return the word embeddings (1, T, H) of token ids."""
        return self.matrix[list(token_ids)][None]

    def ordinary_ids(self) -> list[int]:
        """List the ids of all tokens that are not special."""
        return ordinary_ids(self.tokenizer, len(self.matrix))


def read_words(model: str, revision: str | None = None) -> Words:
    """Read the tokenizer and the word embeddings of a bundled model, a folder or a hub name.

    Raises:
        BackendError: not found, no causal LM, no fast tokenizer of its own, or no safetensors with its word
            embeddings.
    """
    from safetensors import SafetensorError

    try:
        source = resolve(model)
        words = _plainly(Path(source)) or _by_transformers(model, source, where(source, revision))
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendError(
            f"cannot read the tokenizer and word embeddings of {model!r}: {reason} The client embeds text itself: "
            "give the folder or hub name of the causal LM that the endpoint serves."
        ) from error
    check_tokenizer(model, words.tokenizer, len(words.matrix))
    return words


def _plainly(folder: Path) -> Words | None:
    """Read the words of a folder without importing `transformers`; None where its files need it."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    architecture = " ".join(config.get("architectures") or [])
    plain = PLAIN.get(architecture)
    if plain is None or config.get("model_type") != plain.model_type or "auto_map" in config:
        return None
    n_layers, max_length = config.get(plain.layers), config.get(plain.length)
    if not n_layers or not max_length:  # left to the defaults of the class
        return None
    tokenizer = plain_tokenizer(folder)
    if tokenizer is None:
        return None
    return Words(tokenizer, _matrix(str(folder), {}, plain.words), architecture, int(n_layers), int(max_length))


def _by_transformers(model: str, source: str, options: dict[str, Any]) -> Words:
    """Read the words of any causal LM that `transformers` knows; they are fetched if it is on the hub.

    Raises:
        BackendError: it is a masked LM or an encoder-decoder.
    """
    from transformers import AutoConfig, AutoTokenizer

    with quiet():
        config = AutoConfig.from_pretrained(source, **options)
        kind = checked_kind(model, config, None)
        if kind != "causal":
            raise BackendError(
                f"model {model!r} is {'a masked LM' if kind == 'masked' else 'an encoder-decoder'}; this kind of "
                "endpoint serves causal LMs only."
            )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    text = config.get_text_config()
    return Words(
        tokenizer,
        _matrix(source, options, _parameter_name(config)),
        (config.architectures or [type(config).__name__])[0],
        int(text.num_hidden_layers),
        int(getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length),
    )


def _parameter_name(config: Any) -> str:
    """Find the word embeddings' name in the model without a byte of its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    words = model.get_input_embeddings().weight
    return next(str(name) for name, weight in model.named_parameters() if weight is words)


def _matrix(source: str, options: dict[str, Any], name: str) -> NDArray[np.float32]:
    """Read the checkpoint's tensor of that name; checkpoints may leave out the leading parts of the name.

    Raises:
        OSError: the checkpoint has no safetensors; KeyError: none of them holds the tensor.
    """
    from safetensors import safe_open

    index = _file(source, INDEX, options)
    if index:
        shards: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        key = _key(shards, name)
        file = _file(source, shards[key], options)
    else:
        file = _file(source, SINGLE, options)
    if file is None:
        raise OSError(f"it has no {SINGLE}, nor {INDEX} with all its files.")
    with safe_open(file, "np") as handle:
        key = _key(handle.keys(), name)
    return read_matrix(file, key)


def _key(keys: Any, name: str) -> str:
    parts = name.split(".")
    tails = [".".join(parts[i:]) for i in range(len(parts) - 1)]
    present = set(keys)
    found = next((tail for tail in tails if tail in present), None)
    if found is None:
        raise KeyError(f"its files hold no tensor {name}.")
    return found


def _file(source: str, name: str, options: dict[str, Any]) -> Path | None:
    """Return the path of one file of the model, which is fetched if it is on the hub; None where there is no such
    file."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    from transformers.utils.hub import cached_file

    path = cached_file(source, name, **options, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None
