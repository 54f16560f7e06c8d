"""A soft prompt is written here as a folder of PEFT's prompt tuning, and such a folder is read as a soft prompt.

PEFT puts its virtual tokens before everything, BOS and [CLS], too. A prompt with `{start}` has them there; of another,
the tokens that stand left of it become virtual tokens as well, where there is an exact text for the rest. What PEFT
knows nothing of - label words, class biases, template, and the text to tokenise - stands beside in `classifier.json`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bbt.backend import Backend, Decoding, PlainBackend, Row, Segment, require
from bbt.errors import PromptError
from bbt.files import write_atomically, write_bytes_atomically
from bbt.settings import by_likelihood
from bbt.tasks.template import Template
from bbt.types import Prompts

if TYPE_CHECKING:
    from bbt.prompts.soft import SoftPrompt

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "classifier.json"
KEY = "prompt_embeddings"
FORMAT = "bbt-export/1"
_TASK_TYPES = {"causal": "CAUSAL_LM", "masked": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}


def is_peft_folder(path: Path) -> bool:
    """Whether the folder holds what PEFT saves."""
    return (path / CONFIG).is_file()


def virtual_tokens(prompt: "SoftPrompt", backend: Backend) -> tuple[Prompts, dict[str, Any]]:
    """Compute the vectors (T', H) that stand before everything in PEFT's form of a prompt, and the facts that a user
    without bbt needs beside them, as the file `FACTS` holds them.

    Raises:
        PromptError: another model's prompt, or one that is no list of word embeddings (deep, or `placement:
            layernorm`).
        BackendError: the rows cannot be had without bbt, exactly.
    """
    prompt.check_model(backend.info.name, backend.info.fingerprint)
    if prompt.embeddings.ndim != 2:
        raise PromptError("a deep prompt adds to every layer; PEFT and the like take word embeddings alone.")
    if prompt.anchor is not None:
        raise PromptError(
            "a prompt of prompt.placement: layernorm is added after the embedding LayerNorm; PEFT and the like take "
            "word embeddings alone. Tune with prompt.placement: start."
        )
    n_tokens, template = len(prompt.embeddings), Template(prompt.template)
    labels = ((), prompt.label_words) if by_likelihood(prompt.scored_by) else (prompt.label_words + prompt.words, ())
    plain = require(backend, PlainBackend, "an export").plain_text(
        lambda text, pair: _read_at_end(template.render(text, pair, n_tokens)), *labels
    )
    vectors = prompt.embeddings
    if plain.leading_ids and n_tokens:
        vectors = np.concatenate([backend.embed_ids(plain.leading_ids)[0], vectors])
    facts = {
        "format": FORMAT,
        "kind": backend.info.kind,
        "n_virtual_tokens": len(vectors),
        **asdict(plain),
        "biases": prompt.biases or [0.0] * len(prompt.label_words),
        **{key: getattr(prompt, key) for key in ("model", "fingerprint", "template", "label_words", "label_names")},
        **(_generation(prompt.decoding) if prompt.decoding else {"scored_by": prompt.scored_by}),
        "provenance": prompt.provenance,
    }
    if prompt.weights is not None:
        facts |= {"words": prompt.words, "weights": prompt.weights.tolist()}
    return np.ascontiguousarray(vectors, dtype=np.float32), facts


def _read_at_end(row: Row) -> Row:
    """The row with the mask in its target's place, where it has one: what comes next is the model's."""
    return (*row[:-1], Segment("mask")) if row[-1].kind == "target" else row


def _generation(decoding: Decoding) -> dict[str, Any]:
    """The facts of how text is generated: ours, and as arguments of `transformers`' `generate`, in which nothing is
    left to what the model's own defaults say."""
    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}
    arguments = {
        "max_new_tokens": decoding.max_new_tokens,
        "do_sample": decoding.sample,
        "num_beams": decoding.n_beams,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "length_penalty": 1.0,
        "min_length": 0,
        "early_stopping": False,
        **drawn,
    }
    ours = {"decoding": asdict(decoding), "stop": list(decoding.stop), "seed": decoding.seed}
    return {"scored_by": "generation", **ours, "generation": arguments}


def decoding_of(facts: dict[str, Any]) -> Decoding:
    """Read how text is generated from what a JSON file holds."""
    return Decoding(**{**facts, "stop": tuple(facts["stop"])})


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts into the folder, as the file `FACTS`."""
    write_atomically(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def write_peft(folder: Path, vectors: Prompts, facts: dict[str, Any]) -> None:
    """Write the folder that `PeftModel.from_pretrained` loads."""
    from safetensors.numpy import save

    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": _TASK_TYPES[facts["kind"]],
        "base_model_name_or_path": facts["model"],
        "inference_mode": True,
        "num_virtual_tokens": len(vectors),
        "token_dim": vectors.shape[1],
        "num_transformer_submodules": 1,
        "num_layers": 1,  # PEFT asks for these two where a model's config has other names for them; prompt tuning
        "num_attention_heads": 1,  # uses neither
        "prompt_tuning_init": "RANDOM",
    }
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_bytes_atomically(folder / WEIGHTS, save({KEY: vectors}, metadata={"format": "pt"}))
    write_facts(folder, facts)


def read_peft(folder: Path) -> dict[str, Any]:
    """Read the fields of a `SoftPrompt` from a folder of PEFT's. A folder that bbt did not write has neither template
    nor label words, and does not say which weights it belongs to: it is good for p0 alone.

    Raises:
        PromptError: not a prompt of PEFT's prompt tuning.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["peft_type"] != "PROMPT_TUNING":
            raise PromptError(f"{folder} holds PEFT's {config['peft_type']}; a soft prompt is of PROMPT_TUNING.")
        # PEFT makes vectors for an encoder and a decoder, and puts the first before the encoder's input.
        vectors = load_file(folder / WEIGHTS)[KEY].astype(np.float32)[: config["num_virtual_tokens"]]
        facts: dict[str, Any] = {
            "model": config.get("base_model_name_or_path") or "",
            "fingerprint": "",
            "template": "",
        }
        if (folder / FACTS).is_file():
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise PromptError(
            f"{folder} is no folder of PEFT's prompt tuning with {CONFIG} and {WEIGHTS}: {error!r}."
        ) from error
    fields: dict[str, Any] = {"fingerprint": "", "template": "", "label_words": ()}
    fields |= {key: facts[key] for key in ("model", "fingerprint", "template", "provenance") if key in facts}
    fields |= {key: tuple(facts[key]) for key in ("label_words", "label_names", "biases", "words") if key in facts}
    if "weights" in facts:
        fields["weights"] = np.array(facts["weights"], np.float32)
    if "scored_by" in facts:
        fields["scored_by"] = facts["scored_by"]
    if "decoding" in facts:
        fields["decoding"] = decoding_of(facts["decoding"])
    return {"embeddings": vectors[len(facts.get("leading_ids", ())) :], **fields}
