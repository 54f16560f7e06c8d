"""A bundled name, a folder, a GGUF file or a hub name becomes a frozen model and its tokenizer here."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from backends.local.evaluation import is_out_of_memory
from backends.local.hub import where
from backends.local.shapes import PREFIX, random_config, random_model, random_tokenizer
from backends.local.source import Kind, cannot_load, check_tokenizer, checked_kind, quiet, resolve
from backends.local.spread import DeviceMap, values_of
from bbt.errors import BackendError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """The device by its name; `auto` takes cuda, then mps, then cpu.

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
    """The precision by its name; `auto` takes bf16 where the chip has instructions for its products, else fp32.

    Raises:
        BackendError: an unknown precision.
    """
    if precision == "auto":
        return torch.bfloat16 if _is_fast_in_bf16(device) else torch.float32
    if precision not in PRECISIONS:
        raise BackendError(unknown("precision", precision, ("auto", *PRECISIONS)))
    return PRECISIONS[precision]


def _is_fast_in_bf16(device: torch.device) -> bool:
    """Whether the chip has bf16 products of its own: GPUs from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # PyTorch's names for these are private; without them fp32 is the safe answer.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


class Loaded(NamedTuple):
    """A model, and what is known of it."""

    model: Any
    """The `transformers` model, frozen and in eval mode."""
    tokenizer: Any
    """Its fast tokenizer."""
    kind: Kind
    """Masked, causal or encoder-decoder."""
    fingerprint: str
    """A digest of its weights: see `fingerprint`."""


def load(
    model: str,
    kind: Kind | None,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None,
    device_map: DeviceMap | None = None,
) -> Loaded:
    """Load a model with its fast tokenizer, its kind, and its fingerprint: on the device, or spread as a map says.

    Raises:
        BackendError: not found, of another kind, without a language-model head or other weights of its own, without
            a fast tokenizer, or with a tokenizer of another model; or it cannot be spread.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    autos: dict[str, Any] = {
        "masked": AutoModelForMaskedLM,
        "causal": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }
    if kind is not None and kind not in autos:
        raise BackendError(unknown("kind", kind, autos))
    shape = model.removeprefix(PREFIX)
    loaded: Any
    with cannot_load(model), quiet():
        if shape != model:
            config = random_config(shape, revision)
            kind = checked_kind(model, config, kind)
            _check_can_spread(model, kind, device_map)
            auto = autos[kind]
            tokenizer = random_tokenizer(shape, kind, revision)
            loaded = random_model(auto, config, device)
            identity, loaded = fingerprint(loaded), loaded.to(dtype)
        else:
            source = resolve(model)
            options = where(source, revision)
            config = AutoConfig.from_pretrained(source, **options)
            kind = checked_kind(model, config, kind)
            _check_can_spread(model, kind, device_map)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto = autos[kind]
            placing = {} if device_map is None else {"device_map": device_map}
            loaded, report = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **placing, **options)
            _check_weights(model, loaded, report["missing_keys"])
            # What fp16 has rounded cannot be rounded to bf16 as the checkpoint's own values are.
            exact = auto.from_pretrained(source, dtype=torch.bfloat16, **options) if dtype is torch.float16 else loaded
            identity = fingerprint(exact)
    check_tokenizer(model, tokenizer, len(loaded.get_input_embeddings().weight))
    placed = _placed(model, loaded, device) if device_map is None else loaded
    return Loaded(placed.eval().requires_grad_(False), tokenizer, kind, identity)


def _check_can_spread(model: str, kind: Kind, device_map: DeviceMap | None) -> None:
    """Check that a model may be spread over devices, if it is to be.

    Raises:
        BackendError: it is of random weights, or an encoder-decoder.
    """
    if device_map is None:
        return
    if model.startswith(PREFIX):
        raise BackendError(f"{model} is drawn on one device: leave device_map out.")
    if kind == "encoder-decoder":
        raise BackendError(f"{model} is an encoder-decoder, which computes on one device: leave device_map out.")


def _placed(name: str, model: Any, device: torch.device) -> Any:
    """The model on the device.

    Raises:
        BackendError: the device has no room for it.
    """
    try:
        return model.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size = sum(weight.numel() * weight.itemsize for weight in model.parameters()) / 1e9
        raise BackendError(
            f"model {name!r} takes {size:.1f} GB in {str(model.dtype).removeprefix('torch.')}, for which {device} has "
            "no room. Say precision: bf16 (auto needs room for fp32 as well, once), device_map: auto for several GPUs, "
            "choose a smaller model, or serve it with vLLM (model.backend: vllm)."
        ) from error


def _check_weights(model: str, loaded: Any, missing: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks weights, since they would be drawn at random.

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


def fingerprint(model: Any) -> str:
    """Twelve hex digits over names, shapes and 64 values of every weight, rounded to bf16: they tell models apart in
    milliseconds. The model is in fp32 or bf16, or in the precision of its checkpoint, so that no value is rounded
    twice."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        values = values_of(model, name) if weight.is_meta else weight.detach()
        sample = values.flatten()[:: max(1, weight.numel() // 64)]
        digest.update(sample.to(torch.float32).to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
