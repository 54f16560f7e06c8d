"""The packed copy of a trunk is made here, once, when a model is loaded; `Forward` runs it.

The copy shares the weights. In it, attention is ours, linear layers and activations are faster ones, and the layers
stand in wrappers that know what to do with a `Pass`.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from backends.local.attention import NAME, Attending, attention
from backends.local.batching import Group
from backends.local.forward import LastLayer, Layer, Pass
from backends.local.kernels import faster_modules
from backends.local.spread import hooks_of
from backends.local.structure import Structure, replaced, watched

TRIAL = "bbt_trial"
"""The name of packed attention while a trunk is asked which masks it wants."""
FAR = 2**31
"""The place up to which masks are looked at where a model has no longest row."""


def packed_trunk(structure: Structure, words: Tensor, cut_last: bool) -> nn.Module:
    """Make a copy of the trunk that takes packed rows. With `cut_last` its last layer computes only what is read.

    Raises:
        Exception: whatever an unknown architecture makes of what it does not know.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    structure.require_layers()
    trunk = structure.trunk
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(trunk.parameters(), trunk.buffers())}
    memo = {**shared, **hooks_of(trunk)}
    twin: Any = copy.deepcopy(trunk, memo)
    twin.config._attn_implementation = NAME
    twin.config.use_cache = False
    own = [memo[id(layer)] for layer in structure.layers]
    faster = {layer: replaced(layer, faster_modules(layer)) for layer in own}
    tuples = structure.layers_give_tuples
    layers: list[nn.Module] = [Layer(faster[layer], i, tuples) for i, layer in enumerate(own)]
    whole = replaced(twin, dict(zip(own, layers, strict=True)))
    if not cut_last:
        return whole
    last = faster[own[-1]]
    by = {own[-1]: LastLayer(last, _keys_only(whole, last, words), len(own) - 1, tuples)}
    return replaced(twin, {**dict(zip(own[:-1], layers, strict=False)), **by})


def require_plain_masks(trunk: Any, words: Tensor, max_length: int) -> None:
    """Check that a packed trunk wants each token to see all tokens before it, or all of its row, however long the row:
    some models tell of a window by their mask alone, which no packed attention is given.

    Raises:
        NotImplementedError: it wants another mask.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    def mask(*_: Any, mask_function: Any, **__: Any) -> None:
        last = min(max_length, FAR) - 1
        zero, some = torch.tensor(0), torch.tensor([0, 1, last // 2, last])
        seen = torch.tensor([[bool(mask_function(zero, zero, query, key)) for key in some] for query in some])
        if not (seen.all() or seen.equal(some[:, None] >= some)):
            raise NotImplementedError(f"{type(trunk).__name__} has a mask of its own")

    AttentionInterface.register(TRIAL, attention)
    AttentionMaskInterface.register(TRIAL, mask)
    places = torch.arange(3, device=words.device)
    call = Pass((Group(1, 1, len(places)),), places, places[-1:], places[:0])
    name = trunk.config._attn_implementation
    trunk.config._attn_implementation = TRIAL
    try:
        with torch.inference_mode():
            trunk(inputs_embeds=words[places][None], position_ids=places[None], packed=call)
    finally:
        trunk.config._attn_implementation = name


class _Unchanged(nn.Module):
    """A module that gives back what it is given."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden


class _Blank(nn.Module):
    """A module that gives zeros of another width, which take no memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], self._width)


def _keys_only(trunk: nn.Module, layer: nn.Module, words: Tensor) -> nn.Module:
    """Make a layer without what it does after its attention, which is found by watching it.

    Raises:
        NotImplementedError: what comes after its attention gives something else than one tensor.
    """
    told: list[Attending] = []
    later: dict[nn.Module, nn.Module] = {}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module is layer:
            told.append(kwargs["packed"])

    n_tokens = 3
    places = torch.arange(n_tokens, device=words.device)
    call = Pass((Group(1, 1, n_tokens),), places, places, places[:0], only_keys=True)
    handles = [layer.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [m.register_forward_pre_hook(_noting(m, told, later)) for m in layer.modules() if m is not layer]
    try:
        visits = watched(trunk, words[places][None], position_ids=places[None], packed=call)
    finally:
        for handle in handles:
            handle.remove()
    inside = {child for module in later for child in module.modules() if child is not module}
    by: dict[nn.Module, nn.Module] = {}
    for visit in visits:
        if visit.module in later and visit.module not in inside:
            hidden, output = visit.hidden, visit.output
            if hidden is None or not isinstance(output, Tensor) or hidden.shape[:-1] != output.shape[:-1]:
                raise NotImplementedError(f"{type(visit.module).__name__} gives something else than one tensor")
            by[visit.module] = _Unchanged() if hidden.shape == output.shape else _Blank(output.shape[-1])
    return replaced(layer, by)


def _noting(module: nn.Module, told: list[Attending], later: dict[nn.Module, nn.Module]) -> Any:
    """Make a hook that notes a module that begins when the attention has its keys and values."""

    def begin(_: nn.Module, args: Any) -> None:
        if told and told[-1].kept:
            later[module] = module

    return begin
