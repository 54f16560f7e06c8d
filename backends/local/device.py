"""What a GPU needs beside the CPU's way is kept here."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device, floats as float32; to a GPU through pinned memory, without waiting for it. It is
    copied on a CPU too, because PyTorch warns of arrays that are read-only."""
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
    if device.type != "cuda":
        return torch.from_numpy(np.array(array, dtype=dtype)).to(device)
    pinned = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)
