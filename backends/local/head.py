"""The head makes the logits of the label words from the hidden states that are read.

The head is the model's own forward pass with its trunk replaced by one that gives back what it is given, so that
whatever a model does after its trunk (transforms, caps, scales) is done here too.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.local.spread import weight_of
from backends.local.structure import Structure, replaced

ROWS_AT_ONCE = 16384
"""The number of a decoder's rows that are copied to fp32 at a time: 64 MB for H = 1024."""


class Head:
    """A maker of heads for label words, out of a model's own head.

    In general only the label words' rows of the decoder are computed, all of it in fp32: K rows cost nothing, while
    bf16 would round a logit of 100, as causal LMs have them, to 0.5, and rounding in what stands before the decoder
    is half of all (`minilm-mlm`). A `whole` head computes the logits of the whole vocabulary in the model's precision
    and picks: for models that do not call a linear decoder.
    """

    def __init__(self, model: Any, structure: Structure, whole: bool = False) -> None:
        self._decoder = None if whole else model.get_output_embeddings()
        trunk = structure.trunk
        by: dict[nn.Module, nn.Module] = {trunk: _GivesBack(structure)}
        if not whole:
            by.update(_in_full_precision(model, trunk, self._decoder))
        self._head = replaced(model, by)

    def of(self, label_ids: Tensor) -> "LabelHead":
        """Make the head for these K label words."""
        if self._decoder is None:
            return LabelHead(self._head, label_ids)
        return LabelHead(replaced(self._head, {self._decoder: _LabelRows(self._decoder, label_ids)}))

    def of_vocabulary(self) -> "LabelHead":
        """Make the head for all words of the vocabulary."""
        if self._decoder is None:
            return LabelHead(self._head, slice(None))
        return LabelHead(replaced(self._head, {self._decoder: _AllRows(self._decoder)}))


class LabelHead(nn.Module):
    """The head for some label words; it makes logits (S, K) in fp32 of hidden states (S, H)."""

    def __init__(self, head: nn.Module, picked: Tensor | slice | None = None) -> None:
        super().__init__()
        self._head, self._picked = head, picked

    def forward(self, states: Tensor) -> Tensor:
        """Put the states through the model's own head as sequences of one position."""
        states = states[:, None] if self._picked is not None else states[:, None].float()
        logits = self._head(inputs_embeds=states).logits[:, 0]
        return cast(Tensor, (logits if self._picked is None else logits[:, self._picked]).float())


class _GivesBack(nn.Module):
    """A module in the trunk's place that has its attributes and gives back what it is given."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self._structure = structure

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_structure"].trunk, name)

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return self._structure.output_type(last_hidden_state=inputs_embeds)


class _LabelRows(nn.Module):
    """A module in the decoder's place that has the decoder's rows of some tokens, in fp32."""

    def __init__(self, decoder: Any, ids: Tensor) -> None:
        super().__init__()
        weight, bias = (weight_of(decoder, ids, name) for name in ("weight", "bias"))
        self._weight, self._bias = _rows(weight, ids), None if bias is None else _rows(bias, ids)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.to(self._weight), self._weight, self._bias)


def _rows(weight: Any, ids: Tensor) -> Tensor:
    """The rows of a weight for some tokens, in fp32."""
    return cast(Tensor, weight[ids.to(weight.device)].float())


class _AllRows(nn.Module):
    """A module in the decoder's place that computes all of it in fp32, some rows at a time, so that no second copy of
    it is held."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self._decoder = decoder

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = cast(Tensor, weight_of(self._decoder, hidden)), weight_of(self._decoder, hidden, "bias")
        hidden = hidden.to(weight.device, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            parts = torch.split(weight, ROWS_AT_ONCE)
            logits = torch.cat([functional.linear(hidden, rows.float()) for rows in parts], dim=-1)
            return logits if bias is None else logits + bias.float()


def _in_full_precision(model: Any, trunk: nn.Module, decoder: Any) -> dict[nn.Module, nn.Module]:
    """Find the modules between trunk and decoder that hold half-precision weights of their own, each with an fp32
    copy."""
    kept = {*trunk.modules(), *(decoder.modules() if decoder is not None else ())}
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        weights = list(module.parameters())
        if module not in kept and weights and not any(module.children()) and weights[0].dtype is not torch.float32:
            found[module] = copy.deepcopy(module).float()
    return found
