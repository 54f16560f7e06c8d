"""Tensors are written and read here as PyTorch's files hold them, without PyTorch.

`torch.save` writes a zip archive of a pickle, which says how a tensor is made from a storage, and the storage's bytes.
vLLM takes embeddings as such a file; bf16, which numpy does not have, is held as the upper half of fp32.
"""

import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Kind:
    """How PyTorch calls a precision."""

    dtype: str
    """The name of its dtype."""
    storage: str
    """The name of the class of its storages."""


PRECISIONS = {
    "fp32": Kind("float32", "FloatStorage"),
    "bf16": Kind("bfloat16", "BFloat16Storage"),
    "fp16": Kind("float16", "HalfStorage"),
}


def rounded(values: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    """Round to the nearest values of a precision, ties to even; values beyond its largest become infinite."""
    if precision == "bf16":
        return widened(_bf16(values))
    return _fp16(values).astype(np.float32) if precision == "fp16" else values


def saved(matrix: NDArray[np.float32], precision: str) -> bytes:
    """Write a matrix (N, H) in a precision as `torch.save` does: as the bytes of a file that `torch.load` reads."""
    writers: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]]
    writers = {"fp32": np.ascontiguousarray, "bf16": _bf16, "fp16": _fp16}
    values = writers[precision](matrix)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("data.pkl", _pickled(matrix.shape, PRECISIONS[precision].storage)),
            ("byteorder", sys.byteorder.encode()),
            ("data/0", values.tobytes()),
            ("version", b"3\n"),
        ):
            # A name without the time of day: equal matrices are equal bytes.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return buffer.getvalue()


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Make fp32 values of the bits of bf16 values, which is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_matrix(file: Path, key: str) -> NDArray[np.float32]:
    """Read a tensor of a safetensors file in fp32.

    Raises:
        SafetensorError: the file is damaged, or holds no such tensor.
    """
    from safetensors import safe_open

    with safe_open(file, "np") as handle:
        dtype = handle.get_slice(key).get_dtype()
        if dtype in ("F64", "F32", "F16"):
            return np.ascontiguousarray(handle.get_tensor(key), dtype=np.float32)
    if dtype == "BF16":  # which not every safetensors hands to numpy
        return widened(_stored(file, key))
    with safe_open(file, "pt") as handle:  # in eight bits, say
        return np.ascontiguousarray(handle.get_tensor(key).float().numpy())


def _stored(file: Path, key: str) -> NDArray[np.uint16]:
    """Read the bits of a tensor of 16-bit numbers. A safetensors file holds eight bytes with the header's length, the
    header as JSON, and the data."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entry: dict[str, Any] = json.loads(opened.read(length))[key]
        start, end = entry["data_offsets"]
        opened.seek(8 + length + start)
        return np.frombuffer(opened.read(end - start), dtype="<u2").reshape(entry["shape"])


def _fp16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # to infinity, as PyTorch
        return values.astype(np.float16)


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of the nearest bf16 values, ties to even, as PyTorch rounds."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    # The sum may carry a NaN over into another number.
    return np.where(np.isnan(values), np.uint32(0x7FC0), nearest).astype(np.uint16)


def _pickled(shape: tuple[int, ...], storage: str) -> bytes:
    """Write `torch._utils._rebuild_tensor_v2(storage 0, 0, shape, strides, False, OrderedDict())` as opcodes of the
    pickle protocol 2; the storage is a persistent id, as in `torch.save`."""
    n, width = shape

    def text(written: str) -> bytes:
        return b"X" + pack("<I", len(written)) + written.encode()

    def number(value: int) -> bytes:
        return b"J" + pack("<i", value)

    return b"".join(
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text("0") + text("cpu"),
            number(n * width) + b"tQ",  # (kind, class, name, device, size): the persistent id
            number(0),
            number(n) + number(width) + b"\x86",
            number(width) + number(1) + b"\x86",
            b"\x89ccollections\nOrderedDict\n)R",
            b"tR.",
        )
    )
