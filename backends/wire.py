"""The layout of arrays between `bbt serve` and its client: little-endian float32 in C order, then their CRC-32.

The shape is not in it: all axes but the first are known at both ends, so a query costs four bytes more than its
numbers. The check value finds what a proxy or a broken disk did to a body whose length is right.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

MEDIA_TYPE = "application/octet-stream"
_CHECK_BYTES = 4


class WireError(ValueError):
    """A body that is not the array it should be."""


def pack(array: NDArray[np.floating]) -> bytes:
    """Lay out an array of any shape as a body."""
    numbers = np.ascontiguousarray(array, dtype="<f4").tobytes()
    return numbers + zlib.crc32(numbers).to_bytes(_CHECK_BYTES, "little")


def unpack(body: bytes, *shape: int) -> NDArray[np.float32]:
    """Read a body as a read-only array (n, *shape); its length tells n.

    Raises:
        WireError: not a whole number of such rows, or damaged on the way.
    """
    numbers, check = body[:-_CHECK_BYTES], body[-_CHECK_BYTES:]
    row = 4 * int(np.prod(shape))
    if len(check) < _CHECK_BYTES or not row or len(numbers) % row:
        expected = " x ".join(map(str, ("n", *shape)))
        raise WireError(f"a body of {len(body)} bytes is not {expected} float32 numbers and their CRC-32.")
    if zlib.crc32(numbers) != int.from_bytes(check, "little"):
        raise WireError("the body's CRC-32 is not that of its numbers: it was damaged on the way.")
    return np.frombuffer(numbers, dtype="<f4").reshape(-1, *shape)
