"""Operations are counted here: how many an evaluation takes, and how many a second the chip can do at best."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from backends.bench.plain import layers_of

SQUARE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Side of the square product tried beside the model's own shapes: large enough for the chip's best."""
SECONDS = 0.2


def operations(work: Callable[[], Any]) -> int:
    """Count the multiplications and additions of all matrix products and attention in `work`, as PyTorch executes
    them."""
    formulas = {  # PyTorch counts the GPU's attention only, and none of oneDNN's own operators
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        torch.ops.mkldnn._linear_pointwise: _linear_operations,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return int(counter.get_total_flops())


def _attention_operations(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: Any, **kwargs: Any
) -> int:
    """The operations of two products in each head: (N, d) x (d, M) and (N, M) x (M, d)."""
    batch, heads, n, size = query
    return 4 * batch * heads * n * key[2] * size


def _linear_operations(x: tuple[int, ...], weight: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """The operations of x (..., I) times w (O, I)."""
    return 2 * math.prod(x) * weight[0]


class MatrixRate:
    """Operations a second of products x (M, I) times w (O, I), by the shapes of a model's linear layers and a square.

    The shape that is fastest at first stands for the chip; `measure` times it again, beside what it is compared with.
    """

    def __init__(self, model: Any, n_tokens: int) -> None:
        weights = [p for p in layers_of(model).parameters() if p.ndim == 2]
        self._like, side = weights[0], SQUARE[weights[0].device.type]
        shapes = {(n_tokens, min(w.shape), max(w.shape)) for w in weights} | {(side, side, side)}
        self.by_shape = {shape: self._rate(*self._operands(shape)) for shape in sorted(shapes)}
        self.shape = max(self.by_shape, key=lambda shape: self.by_shape[shape])
        self._best = self._operands(self.shape)

    def measure(self) -> float:
        """Measure the best shape's rate now, in operations a second."""
        return self._rate(*self._best)

    def _operands(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        m, i, o = shape
        return torch.randn(m, i).to(self._like), torch.randn(o, i).to(self._like)

    @torch.inference_mode()
    def _rate(self, x: Tensor, w: Tensor) -> float:
        functional.linear(x, w)
        n, start = 0, now(x.device)
        while (spent := now(x.device) - start) < SECONDS:
            for _ in range(1 + n):  # a GPU must not wait for the clock after each product
                functional.linear(x, w)
            n += 1 + n
        return 2.0 * n * x.shape[0] * x.shape[1] * w.shape[0] / spent


def now(device: torch.device) -> float:
    """The clock in seconds, read when all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
