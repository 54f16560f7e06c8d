"""Adapters: small bottleneck networks in every layer, trained while the model stays frozen."""

import re
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from bbt.baselines.weights import WeightTraining
from bbt.errors import BackendError, unknown

_BERT = ("attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA = ("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
PLACES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), _BERT),
    "distilbert": ("attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "gpt2": ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}
"""Model type -> a layer's last attention projection, and the first and last of its feed-forward network."""


class Adapter(WeightTraining):
    """Where the `bottleneck` stands:

    sequential       after the attention and after the feed-forward network (Houlsby et al. 2019, arXiv 1902.00751)
    parallel         beside the feed-forward network, added to its output (He et al. 2022, arXiv 2110.04366)
    scaled-parallel  the same times `scale`; 4 in He et al., section 4.5
    """

    learning_rate: float = Field(1e-3, gt=0)
    steps: int = Field(50, gt=0)
    variant: Literal["sequential", "parallel", "scaled-parallel"] = "sequential"
    bottleneck: int = Field(64, ge=1)
    scale: float = Field(4.0, gt=0)

    def thaw(self, model: Any) -> None:
        """Put the adapters in.

        Raises:
            BackendError: nobody has said where they stand in this architecture.
        """
        kind = model.config.model_type
        if kind not in PLACES:
            raise BackendError(unknown("model type for adapters", kind, PLACES))
        attention, first, last = (layer_modules(model, suffix) for suffix in PLACES[kind])
        if self.variant == "sequential":
            for host in (*attention, *last):
                self._after(host, model)
        else:
            for start, host in zip(first, last, strict=True):
                self._beside(start, host, model)

    def _after(self, host: nn.Module, model: Any) -> None:
        adapter = self._adapter(host, model)
        host.register_forward_hook(lambda module, args, output: output + adapter(output))

    def _beside(self, start: nn.Module, host: nn.Module, model: Any) -> None:
        """The input of `start`, through the adapter, is added to the output of `host`."""
        adapter, inputs = self._adapter(host, model), list[Tensor]()
        scale = self.scale if self.variant == "scaled-parallel" else 1.0
        start.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        host.register_forward_hook(lambda module, args, output: output + scale * adapter(inputs.pop()))

    def _adapter(self, host: nn.Module, model: Any) -> nn.Module:
        """A new one, as a part of `host` so that it is saved and trained with the model."""
        adapter = Bottleneck(int(model.config.hidden_size), self.bottleneck).to(model.device)
        host.add_module("adapter", adapter)
        return adapter


class Bottleneck(nn.Module):
    """Down, ReLU, up: (..., H) -> (..., H). The way up starts at zero, so that the model starts unchanged."""

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, bottleneck), nn.Linear(bottleneck, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The change of the hidden states."""
        return self.up(self.down(hidden).relu())  # type: ignore[no-any-return]


def layer_modules(model: nn.Module, suffix: str) -> list[nn.Module]:
    """The module of that name in every layer, bottom to top."""
    pattern = re.compile(rf"\.\d+\.{re.escape(suffix)}$")
    return [module for name, module in model.named_modules() if pattern.search(name)]
