"""Adapters: small bottleneck networks in every layer, trained while the model stays frozen."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bbt.baselines.weights import WeightTraining
from bbt.errors import BackendError, unknown


@dataclass(frozen=True)
class Places:
    """The names of a layer's modules at which adapters stand."""

    query: str
    """The projection to the attention's queries (GPT-2's gives keys and values after them)."""
    attention: str
    """The last projection of the attention."""
    first: str
    """The first projection of the feed-forward network."""
    last: str
    """The last projection of the feed-forward network."""


_BERT = Places("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
_LLAMA = Places("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
PLACES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), _BERT),
    "distilbert": Places("attention.q_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "gpt2": Places("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}
"""Where the adapters of each model type stand."""


class Adapter(WeightTraining):
    """Adapters of a variant and a width r. The variant says where the bottleneck stands (He et al. 2022, arXiv
    2110.04366, table 1). With x what goes into a sub-layer (after its LayerNorm, where that comes first), h what comes
    out of it, and f(x) = ReLU(x W_down + b_down) W_up + b_up, a layer is changed thus:

    sequential           h <- h + f(h), after the attention and after the feed-forward network (Houlsby et al. 2019,
                         arXiv 1902.00751)
    parallel             h <- h + f(x), at the feed-forward network
    scaled-parallel      h <- h + scale * f(x), at the feed-forward network; scale 4 in He et al., section 4.5
    parallel-attention   h <- h + f(x), at the attention
    multi-head-parallel  head_i <- head_i + ReLU(q_i W_down_i) W_up_i in every head of the attention, before its last
                         projection; q_i = x W_q_i are the head's queries, as in the authors' code. All heads together
                         have 2 r H weights, as many as one bottleneck at the attention
    """

    learning_rate: float = Field(1e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(50, gt=0)
    """The number of gradient steps."""
    variant: Literal["sequential", "parallel", "scaled-parallel", "parallel-attention", "multi-head-parallel"] = (
        "sequential"
    )
    """Where the bottleneck stands, as above."""
    bottleneck: int = Field(64, ge=1)
    """r, the width of the bottleneck."""
    scale: float = Field(4.0, gt=0)
    """The factor of `scaled-parallel`."""

    def thaw(self, model: Any) -> None:
        """Put the adapters into the model; they alone are trained.

        Raises:
            BackendError: nobody has said where they stand in this architecture.
        """
        kind = model.config.model_type
        if kind not in PLACES:
            raise BackendError(unknown("model type for adapters", kind, PLACES))
        places = PLACES[kind]
        query, attention = (layer_modules(model, suffix) for suffix in (places.query, places.attention))
        first, last = (layer_modules(model, suffix) for suffix in (places.first, places.last))
        match self.variant:
            case "sequential":
                for host in (*attention, *last):
                    self._after(host, model)
            case "parallel" | "scaled-parallel":
                for start, host in zip(first, last, strict=True):
                    self._beside(start, host, model)
            case "parallel-attention":
                for start, host in zip(query, attention, strict=True):
                    self._beside(start, host, model)
            case "multi-head-parallel":
                for start, host in zip(query, attention, strict=True):
                    self._in_heads(start, host, model)

    def _after(self, host: nn.Module, model: Any) -> None:
        adapter = self._bottleneck(host, model)
        host.register_forward_hook(lambda module, args, output: output + adapter(output))

    def _beside(self, start: nn.Module, host: nn.Module, model: Any) -> None:
        """Add the input of `start`, put through the adapter, to the output of `host`."""
        adapter, inputs = self._bottleneck(host, model), list[Tensor]()
        scale = self.scale if self.variant == "scaled-parallel" else 1.0
        start.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        host.register_forward_hook(lambda module, args, output: output + scale * adapter(inputs.pop()))

    def _in_heads(self, query: nn.Module, host: nn.Module, model: Any) -> None:
        """Add the output of `query`, put through the heads' adapters, to the input of `host`."""
        n_heads, queries = int(model.config.num_attention_heads), list[Tensor]()
        adapter = _inside(host, HeadBottlenecks(n_heads, _n_inputs(host) // n_heads, self.bottleneck), model)
        query.register_forward_hook(lambda module, args, output: queries.append(output[..., : _n_inputs(host)]))
        host.register_forward_pre_hook(lambda module, args: (args[0] + adapter(queries.pop()), *args[1:]))

    def _bottleneck(self, host: nn.Module, model: Any) -> nn.Module:
        return _inside(host, Bottleneck(int(model.config.hidden_size), self.bottleneck), model)


def _inside(host: nn.Module, adapter: nn.Module, model: Any) -> nn.Module:
    """Make the adapter a part of `host`, so that it is saved and trained with the model."""
    host.add_module("adapter", adapter.to(model.device))
    return adapter


def _n_inputs(projection: nn.Module) -> int:
    """The width of what a projection is given; GPT-2's hold their weights the other way round."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[1] if isinstance(projection, nn.Linear) else weight.shape[0])


class Bottleneck(nn.Module):
    """A network that projects down, rectifies and projects up: (..., H) -> (..., H). The way up starts at zero, so that
    the model starts unchanged."""

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, bottleneck), nn.Linear(bottleneck, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The change of the hidden states (..., H)."""
        return self.up(self.down(hidden).relu())  # type: ignore[no-any-return]


class HeadBottlenecks(nn.Module):
    """Bottlenecks without biases in each of n heads of width w: (..., n w) -> (..., n w). The ways up start at zero, so
    that the model starts unchanged."""

    def __init__(self, n_heads: int, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(n_heads, width, bottleneck).uniform_(-1, 1) / width**0.5)
        self.up = nn.Parameter(torch.zeros(n_heads, bottleneck, width))

    def forward(self, queries: Tensor) -> Tensor:
        """The changes of the heads' outputs, side by side."""
        heads = queries.reshape(*queries.shape[:-1], len(self.down), -1)
        inner = torch.einsum("...nw,nwr->...nr", heads, self.down).relu()
        return torch.einsum("...nr,nrw->...nw", inner, self.up).flatten(-2)


def layer_modules(model: nn.Module, suffix: str) -> list[nn.Module]:
    """The modules of that name, one in every layer, from the bottom to the top."""
    pattern = re.compile(rf"\.\d+\.{re.escape(suffix)}$")
    return [module for name, module in model.named_modules() if pattern.search(name)]
