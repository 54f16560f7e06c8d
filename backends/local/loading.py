"""From a bundled name, a folder or a hub name to a frozen model and its tokenizer."""

import hashlib
from typing import Any, Literal

import torch

from backends.local.shapes import PREFIX, random_config, random_model, random_tokenizer
from backends.models import bundled_models
from bbt.errors import BackendError, did_you_mean, unknown

Kind = Literal["masked", "causal"]
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(model: str) -> str:
    """A bundled name becomes its folder; anything else is left to `transformers`."""
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


def load(
    model: str, kind: Kind | None, device: torch.device, dtype: torch.dtype, revision: str | None
) -> tuple[Any, Any, Kind]:
    """Model (frozen, in eval mode), fast tokenizer, and whether it is a masked or a causal LM.

    Raises:
        BackendError: not found, or neither a masked nor a causal LM, or without a fast tokenizer.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the only one
    if kind not in (None, "masked", "causal"):
        raise BackendError(unknown("kind", kind, ("masked", "causal")))
    source, shape = resolve(model), model.removeprefix(PREFIX)
    loaded: Any
    try:
        random = shape != model
        config = random_config(shape, revision) if random else AutoConfig.from_pretrained(source, revision=revision)
        kind = kind or kind_of(config)
        auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
        if random:
            tokenizer = random_tokenizer(shape, kind, revision)
            loaded = random_model(auto, config, device).to(dtype)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            loaded = auto.from_pretrained(source, revision=revision, dtype=dtype)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendError(
            f"cannot load model {model!r}: {reason}{did_you_mean(model, bundled_models())} "
            f"Give a folder, a name on the hub, or one of: {', '.join(bundled_models())}."
        ) from error
    if not tokenizer.is_fast:
        raise BackendError(f"model {model!r} has no fast tokenizer (tokenizer.json), which truncation needs.")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where the files are missing
        raise BackendError(f"model {model!r} comes without a tokenizer: no tokenizer.json or vocabulary beside it.")
    return loaded.to(device).eval().requires_grad_(False), tokenizer, kind


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
    """Twelve hex digits over names, shapes and 64 values of every weight: tells models apart in milliseconds."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)]
        digest.update(sample.to(torch.float32).to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
