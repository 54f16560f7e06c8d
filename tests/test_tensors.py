"""Tensors without PyTorch are what PyTorch writes, reads and rounds."""

import io
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backends.openai.tensors import PRECISIONS, read_matrix, rounded, saved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
every_precision = pytest.mark.parametrize("precision", DTYPES)


def values(n=300, width=40):
    """Numbers of every size with ties between neighbours, zeros of both signs, and what is beyond a precision."""
    bits = np.random.default_rng(0).integers(0, 2**32, n * width, dtype=np.uint32)
    bits[: n * width // 3] &= 0xFFFF8000  # halfway between two bf16 numbers, or on one
    bits[-n:] = (np.arange(n, dtype=np.uint32) << 12) + 0x3F800000  # fp16 ties
    some = bits.view(np.float32)
    some[100:110] = [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.0, 65520.0, 3.4e38, 1e-40, 6e-8]
    return some.reshape(n, width)


def bits_of(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16).numpy()


def same(found, expected):
    """Equal bit for bit, but that one NaN is as good as another."""
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    np.testing.assert_array_equal(bits_of(found)[~nan.numpy()], bits_of(expected)[~nan.numpy()])


@every_precision
def test_what_is_saved_is_loaded_as_it_is(precision):
    loaded = torch.load(io.BytesIO(saved(values(), precision)), weights_only=True, map_location="cpu")
    assert loaded.dtype == DTYPES[precision] == getattr(torch, PRECISIONS[precision].dtype)
    assert loaded.shape == (300, 40)
    assert loaded.is_contiguous()
    assert not loaded.requires_grad
    same(loaded, torch.from_numpy(values()).to(DTYPES[precision]))


@every_precision
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (70000, 3)])
def test_every_shape_is_loaded(precision, shape):
    matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    loaded = torch.load(io.BytesIO(saved(matrix, precision)), weights_only=True)
    same(loaded, torch.from_numpy(matrix).to(DTYPES[precision]))


@every_precision
def test_a_view_is_saved_as_what_it_shows(precision):
    whole = np.random.default_rng(2).standard_normal((100, 8)).astype(np.float32)
    view = whole[10:40:3].T
    same(torch.load(io.BytesIO(saved(view, precision)), weights_only=True), torch.tensor(view).to(DTYPES[precision]))


def test_the_files_parts_are_those_of_torch_save():
    matrix = np.ones((3, 4), dtype=np.float32)
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(matrix), buffer)
    theirs, ours = zipfile.ZipFile(buffer), zipfile.ZipFile(io.BytesIO(saved(matrix, "fp32")))
    for name in ours.namelist():
        assert name in theirs.namelist()
        if not name.endswith("data.pkl"):
            assert ours.read(name) == theirs.read(name)
    assert saved(matrix, "fp32") == saved(matrix, "fp32")


@every_precision
def test_rounding_is_that_of_torch(precision):
    same(
        torch.from_numpy(rounded(values(), precision)),
        torch.from_numpy(values()).to(DTYPES[precision]).float(),
    )


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64, torch.float8_e4m3fn])
def test_a_matrix_is_read_in_fp32(dtype, tmp_path):
    torch.manual_seed(0)
    matrix = torch.randn(50, 6).to(dtype)
    save_file({"before": torch.ones(3), "words": matrix, "zafter": torch.ones(2)}, tmp_path / "a.safetensors")
    found = read_matrix(tmp_path / "a.safetensors", "words")
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, matrix.float().numpy())
