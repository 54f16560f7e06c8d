"""From a bundled name, a folder, a GGUF file or a hub name to a frozen model and its tokenizer."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from backends.local.encoding import special_ids
from backends.local.gguf import SMOLLM2, plain_copy, smollm2_file
from backends.local.hub import where
from backends.local.shapes import PREFIX, random_config, random_model, random_tokenizer
from backends.models import bundled_models
from bbt.errors import BackendError, did_you_mean, unknown

Kind = Literal["masked", "causal"]
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def known_models() -> list[str]:
    """The names that stand for a model without a folder or the hub."""
    return [*bundled_models(), SMOLLM2]


def resolve(model: str) -> str:
    """A bundled name becomes its folder, a GGUF file the folder of its plain copy; anything else is left to
    `transformers`.

    Raises:
        BackendError: a GGUF file that cannot be read.
    """
    if model == SMOLLM2:
        return str(plain_copy(smollm2_file()))
    if model.lower().endswith(".gguf"):
        return str(plain_copy(Path(model).expanduser()))
    return str(bundled_models().get(model, model))


def resolve_device(device: str) -> torch.device:
    """`auto` takes cuda, then mps, then cpu.

    Raises:
        BackendError: an unknown device, or one that this machine or PyTorch build lacks.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "mps" if available["mps"] else "cpu")
    kind = device.split(":")[0]
    if kind not in available:
        raise BackendError(unknown("device", device, DEVICES))
    if not available[kind]:
        present = ", ".join(name for name, here in available.items() if here)
        raise BackendError(f"device {device!r} is not available to this PyTorch ({torch.__version__}): {present}.")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto` takes bf16 where the chip has matrix units for it, else fp32.

    Raises:
        BackendError: an unknown precision.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bf16_matrix_units(device) else torch.float32
    if precision not in PRECISIONS:
        raise BackendError(unknown("precision", precision, ("auto", *PRECISIONS)))
    return PRECISIONS[precision]


def _has_bf16_matrix_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # PyTorch's name for "has AMX tiles" is private; without it fp32 is the safe answer.
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and amx is not None and bool(amx())


class Loaded(NamedTuple):
    """A model (frozen, in eval mode) and what is known of it."""

    model: Any
    tokenizer: Any
    kind: Kind
    fingerprint: str


def load(model: str, kind: Kind | None, device: torch.device, dtype: torch.dtype, revision: str | None) -> Loaded:
    """A model on the device with its fast tokenizer, whether it is a masked or a causal LM, and its fingerprint.

    Raises:
        BackendError: not found, of another kind, without a language-model head or other weights of its own, without
            a fast tokenizer, or with a tokenizer of another model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    if kind not in (None, "masked", "causal"):
        raise BackendError(unknown("kind", kind, ("masked", "causal")))
    shape = model.removeprefix(PREFIX)
    auto: Any
    loaded: Any
    with cannot_load(model), quiet():
        if shape != model:
            config = random_config(shape, revision)
            kind = checked_kind(model, config, kind)
            auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
            tokenizer = random_tokenizer(shape, kind, revision)
            loaded = random_model(auto, config, device)
            identity, loaded = fingerprint(loaded), loaded.to(dtype)
        else:
            source = resolve(model)
            options = where(source, revision)
            config = AutoConfig.from_pretrained(source, **options)
            kind = checked_kind(model, config, kind)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
            loaded, report = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
            _check_weights(model, loaded, report["missing_keys"])
            # What fp16 has rounded cannot be rounded to bf16 as the checkpoint's own values are.
            exact = auto.from_pretrained(source, dtype=torch.bfloat16, **options) if dtype is torch.float16 else loaded
            identity = fingerprint(exact)
    check_tokenizer(model, tokenizer, len(loaded.get_input_embeddings().weight))
    return Loaded(loaded.to(device).eval().requires_grad_(False), tokenizer, kind, identity)


@contextmanager
def cannot_load(model: str) -> Iterator[None]:
    """What `transformers` and its helpers raise becomes one line that says what a model may be.

    Raises:
        BackendError: in place of the exception.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        names = known_models()
        raise BackendError(
            f"cannot load model {model!r}: {reason}{did_you_mean(model, names)} "
            f"Give a folder, a GGUF file, a name on the hub, or one of: {', '.join(names)}."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no report of weights that are not used; what is missing is an error of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the only one
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def check_tokenizer(model: str, tokenizer: Any, n_words: int) -> None:
    """Refuse a tokenizer whose ids are not rows of the model's `n_words` word embeddings. Special tokens that are
    never put into a row (a chat model's padding, for instance) may lie beyond them.

    Raises:
        BackendError: not a fast tokenizer, made up from nothing, or larger than the embeddings.
    """
    if not tokenizer.is_fast:
        raise BackendError(f"model {model!r} has no fast tokenizer (tokenizer.json), which truncation needs.")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the files are missing
        raise BackendError(f"model {model!r} comes without a tokenizer: no tokenizer.json or vocabulary beside it.")
    unused = special_ids(tokenizer) - {*tokenizer("a")["input_ids"], tokenizer.mask_token_id}
    beyond = [token for token, i in tokenizer.get_vocab().items() if i >= n_words and i not in unused]
    if beyond:
        raise BackendError(
            f"the tokenizer of model {model!r} does not belong to its weights: {len(beyond)} of its tokens, "
            f"{beyond[0]!r} among them, lie beyond the {n_words} word embeddings. Put the tokenizer that the model was "
            "trained with beside it, or resize the embeddings and train them."
        )


def checked_kind(model: str, config: Any, kind: Kind | None) -> Kind:
    """The kind asked for, or the config's own.

    Raises:
        BackendError: a model of neither kind, or that `transformers` does not have in the kind asked for.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    what = f"cannot load model {model!r}: it is of type {config.model_type} ({', '.join(config.architectures or [])})"
    if getattr(config, "is_encoder_decoder", False) and kind != "causal":
        raise BackendError(
            f"{what}, an encoder-decoder model; bbt tunes masked LMs (BERT's kind) and causal LMs (GPT's kind)."
        )
    chosen = kind or kind_of(config)
    if type(config) not in (MODEL_FOR_MASKED_LM_MAPPING if chosen == "masked" else MODEL_FOR_CAUSAL_LM_MAPPING):
        known = f"which is no {chosen} LM" if kind else "neither a masked LM (BERT's kind) nor a causal LM (GPT's kind)"
        raise BackendError(f"{what}, {known}.")
    return chosen


def _check_weights(model: str, loaded: Any, missing: Iterable[str]) -> None:
    """A weight that the checkpoint lacks would be drawn at random.

    Raises:
        BackendError: names the missing weights.
    """
    names = sorted(missing)
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise BackendError(
            f"cannot load model {model!r}: its files lack weights of {type(loaded).__name__}, which would be random: "
            f"{shown}. An encoder or a classifier has no language-model head: take the checkpoint that has one."
        )


def kind_of(config: Any) -> Kind:
    """From the architecture in config.json; a model type known to one auto class only decides otherwise."""
    names = " ".join(config.architectures or [])
    if "MaskedLM" in names or "ForPreTraining" in names:
        return "masked"
    if "CausalLM" in names or "LMHead" in names:
        return "causal"
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    return "masked" if type(config) in MODEL_FOR_MASKED_LM_MAPPING else "causal"


def fingerprint(model: Any) -> str:
    """Twelve hex digits over names, shapes and 64 values of every weight, rounded to bf16: tells models apart in
    milliseconds. The model is in fp32 or bf16, or in the precision of its checkpoint, so that no value is rounded
    twice."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
        digest.update(sample.to(torch.float32).to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
