"""Faster ways to compute what a model's linear layers and activations say.

On a CPU in bf16: weights laid out for the matrix units once, and GELU taken while the product is in cache.
Everywhere: the tanh form of GELU in one kernel, where transformers takes eight.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

Forwards: TypeAlias = dict[nn.Module, Callable[[Tensor], Tensor]]
"""What modules are to do instead of their `forward`."""

GELU, GELU_TANH = (GELUActivation, nn.GELU), (NewGELUActivation, GELUTanh)
LAID_OUT_FOR = 2048
"""Tokens of a typical product, which the layout of the weights is chosen for; others are right, too."""


def faster_forwards(layers: nn.ModuleList) -> Forwards:
    """For every linear layer and activation that has a faster way here."""
    found: Forwards = {module: _gelu_tanh for module in layers.modules() if isinstance(module, GELU_TANH)}
    if not _has_laid_out_products(next(layers.parameters())):
        return found
    activated = dict(_activated(layers))
    found.update(dict.fromkeys(activated.values(), _unchanged))
    for module in layers.modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[module] = _laid_out(module, activated.get(module))
    return found


def _activated(layers: nn.ModuleList) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The linear layer that widens and the GELU after it, where a block has one of each."""
    for block in layers.modules():
        children = list(block.children())
        wide = [child for child in children if isinstance(child, nn.Linear | Conv1D) and _widens(child)]
        gelu = [child for child in children if isinstance(child, GELU + GELU_TANH)]
        if len(wide) == len(gelu) == 1:
            yield wide[0], gelu[0]


def _widens(linear: Any) -> bool:
    n_out, n_in = _weight(linear).shape
    return bool(n_out > n_in)


def _weight(linear: Any) -> Tensor:
    """(out, in); GPT-2's layers hold it transposed."""
    weight: Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight


def _has_laid_out_products(weight: Tensor) -> bool:
    """PyTorch's compiler uses these operators of oneDNN; they are not public, so they may go one day."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _laid_out(linear: Any, gelu: nn.Module | None) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(_weight(linear).detach().contiguous(), LAID_OUT_FOR)
    bias = linear.bias
    after, form = ("none", "") if gelu is None else ("gelu", "tanh" if _is_tanh(gelu) else "none")

    def forward(hidden: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, after, [], form)
        return product

    return forward


def _is_tanh(gelu: Any) -> bool:
    return isinstance(gelu, GELU_TANH) or getattr(gelu, "approximate", "none") == "tanh"


def _gelu_tanh(hidden: Tensor) -> Tensor:
    return functional.gelu(hidden, approximate="tanh")


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden
