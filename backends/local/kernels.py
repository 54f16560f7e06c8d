"""A model's linear layers and activations are computed here in faster ways.

On a CPU in bf16: weights laid out for the matrix units once, and GELU taken while the product is in cache.
Everywhere: the tanh form of GELU in one kernel, where transformers takes eight. On a GPU: RMSNorm in one, too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

GELU, GELU_TANH = (GELUActivation, nn.GELU), (NewGELUActivation, GELUTanh)
LAID_OUT_FOR = 2048
"""Tokens of a typical product, which the layout of the weights is chosen for; others are right, too."""


def faster_modules(layer: nn.Module) -> dict[nn.Module, nn.Module]:
    """The faster module for each linear layer and activation of a layer that has one here."""
    found: dict[nn.Module, nn.Module] = {m: _GELUTanh() for m in layer.modules() if isinstance(m, GELU_TANH)}
    if next(layer.parameters()).device.type == "cuda":
        found.update(norms_in_one_kernel(layer))
    if not _has_laid_out_products(next(layer.parameters())):
        return found
    activated = dict(_activated(layer))
    found.update({gelu: nn.Identity() for gelu in activated.values()})
    for module in layer.modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[module] = _LaidOut(module, activated.get(module))
    return found


def _activated(layer: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the linear layer that widens and the GELU after it, where a block has one of each."""
    for block in layer.modules():
        children = list(block.children())
        wide = [child for child in children if isinstance(child, nn.Linear | Conv1D) and _widens(child)]
        gelu = [child for child in children if isinstance(child, GELU + GELU_TANH)]
        if len(wide) == len(gelu) == 1:
            yield wide[0], gelu[0]


def _widens(linear: Any) -> bool:
    n_out, n_in = _weight(linear).shape
    return bool(n_out > n_in)


def _weight(linear: Any) -> Tensor:
    """The weights (out, in) of a linear layer; GPT-2's hold them transposed."""
    weight: Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight


def _has_laid_out_products(weight: Tensor) -> bool:
    """Whether PyTorch has the operators of oneDNN that its compiler uses; they are not public, so they may go one
    day."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _LaidOut(nn.Module):
    """A linear layer whose weights are laid out for the matrix units, with the GELU that follows it, if any."""

    def __init__(self, linear: Any, gelu: nn.Module | None) -> None:
        super().__init__()
        weight = _weight(linear).detach().contiguous()
        self._linear = (linear,)  # a tuple keeps PyTorch from taking it as a part of this module
        self._laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, LAID_OUT_FOR)
        self._after, self._form = ("none", "")
        if gelu is not None:
            self._after, self._form = "gelu", "tanh" if _is_tanh(gelu) else "none"

    @property
    def weight(self) -> Tensor:
        """The weights as the layer had them."""
        weight: Tensor = self._linear[0].weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias as the layer had it."""
        bias: Tensor | None = self._linear[0].bias
        return bias

    def forward(self, hidden: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._laid_out, self.bias, self._after, [], self._form
        )
        return product


class _GELUTanh(nn.Module):
    """The tanh form of GELU in one kernel."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.gelu(hidden, approximate="tanh")


class _RMSNorm(nn.Module):
    """RMSNorm as PyTorch has it: one kernel on a GPU (2.9 and later), where transformers takes six."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


@torch.inference_mode()
def norms_in_one_kernel(layer: nn.Module) -> dict[nn.Module, nn.Module]:
    """PyTorch's RMSNorm for each module that is called one, has its parts, and gives the same numbers on a trial (Gemma
    adds 1 to the weights)."""
    found: dict[nn.Module, nn.Module] = {}
    for module in layer.modules():
        eps, weight = getattr(module, "variance_epsilon", getattr(module, "eps", None)), getattr(module, "weight", None)
        if type(module).__name__.endswith("RMSNorm") and isinstance(eps, float) and isinstance(weight, nn.Parameter):
            twin = _RMSNorm(weight, eps)
            trial = torch.linspace(-2, 3, 4 * weight.numel(), device=weight.device).to(weight.dtype)
            given, expected = (norm(trial.view(4, -1)).float() for norm in (twin, module))
            if torch.allclose(given, expected, rtol=4 * torch.finfo(weight.dtype).eps, atol=1e-6):
                found[module] = twin
    return found


def _is_tanh(gelu: Any) -> bool:
    return isinstance(gelu, GELU_TANH) or getattr(gelu, "approximate", "none") == "tanh"
