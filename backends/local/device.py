"""What a GPU needs beside the CPU's way is kept here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.local.spread import devices_of
from backends.local.structure import word_embeddings
from bbt.spaces.soft import PromptSpace

CPU_TOKENS, GPU_TOKENS, OTHER_TOKENS = 4096, 65536, 16384
"""The most tokens of a micro-batch by default: what stays in a CPU's caches, what keeps a GPU busy, and elsewhere."""
LEAST_TOKENS = 1024
"""The tokens of a micro-batch on a GPU that is nearly full."""
SHARE_OF_A = 8
"""A stays on the host where it would take more than one part in so many of the GPU's free memory."""


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device, floats as float32; to a GPU through pinned memory, without waiting for it. It is
    copied on a CPU too, because PyTorch warns of arrays that are read-only.

    Raises:
        RuntimeError: it would become a part of a CUDA graph.
    """
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
    if device.type != "cuda":
        return torch.from_numpy(np.array(array, dtype=dtype)).to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph would copy from memory of the host that is used for something else by then.")
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)


def default_budget(model: Any, device: torch.device) -> int:
    """The tokens of a micro-batch for a model on a device: on a GPU as many as half of its free memory has room for by
    a rough count (eight hidden states and four of the widest layer's a token), as a power of two, so that a little
    memory more or less changes nothing; of several GPUs the fullest counts."""
    if device.type != "cuda":
        return CPU_TOKENS if device.type == "cpu" else OTHER_TOKENS
    torch.cuda.empty_cache()  # what loading has left behind is free as well
    gpus = [one for one in devices_of(model) if one.type == "cuda"] or [device]
    return budget_within(min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) // 2, model)


def budget_within(n_bytes: int, model: Any) -> int:
    """The tokens of a micro-batch whose states take about so many bytes."""
    words = word_embeddings(model)
    widths = (max(w.shape) for w in model.base_model.parameters() if w.ndim == 2 and len(words) not in w.shape)
    a_token = words.itemsize * (8 * words.shape[1] + 4 * max(widths, default=words.shape[1]))
    room = max(LEAST_TOKENS, min(GPU_TOKENS, n_bytes // a_token))
    return 1 << (int(room).bit_length() - 1)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """A context in which a GPU's fp32 products are in fp32, not in TF32, whatever the process has allowed: fp32 is what
    half precision is measured against, and bf16 is as rough as TF32 and twice as fast. The setting is the process's
    own, so it is touched only where it says otherwise, and restored."""
    products: Any = torch.backends.cuda.matmul
    new = hasattr(products, "fp32_precision")  # PyTorch 2.9 and later
    name = "fp32_precision" if new else "allow_tf32"
    exact, rough = ("ieee", "tf32") if new else (False, True)
    was = getattr(products, name)
    if device.type != "cuda" or was != rough:
        yield
        return
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, was)


class HeldSpace:
    """A prompt space whose p0 and A lie on a GPU, so that z travels to it instead of prompts."""

    def __init__(self, space: PromptSpace, device: torch.device) -> None:
        self.space = space
        self._p0, self._matrix = on_device(space.p0, device), on_device(space.matrix, device)

    def prompts(self, latents: Tensor) -> Tensor:
        """The prompts (n, T, H) of latents (n, d), in float32."""
        return self._p0 + (latents @ self._matrix.T).view(-1, *self._p0.shape[1:])


def has_room_for(space: PromptSpace, device: torch.device) -> bool:
    """Whether the device is a GPU with room for the space's A."""
    return device.type == "cuda" and space.matrix.nbytes * SHARE_OF_A <= torch.cuda.mem_get_info(device)[0]
