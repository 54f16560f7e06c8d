"""One forward pass of a frozen model over a micro-batch, from embeddings to the hidden states that are read.

*Packed*, the micro-batch is one row of tokens: a copy of the trunk, which shares the weights, attends within sequences
and computes of its last layer only what is read. *Apart*, the trunk as it came is given sequences of one length: for
models that cannot be packed. Everything that belongs to one pass travels in its arguments, a `Pass`.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from backends.local.attention import Attending, of_candidates
from backends.local.batching import Group
from backends.local.structure import Structure, first_position, replaced
from backends.local.unequal import Kernel, Lines

KeysAndValues: TypeAlias = dict[int, tuple[Tensor, Tensor]]
"""By layer: keys and values, each (n, heads, N, head size)."""


@dataclass
class Pass:
    """What one forward pass is told beside its embeddings."""

    groups: tuple[Group, ...]
    """How the P tokens of the micro-batch lie."""
    positions: Tensor
    """(P,) place of each token in its row."""
    read: Tensor
    """(S,) tokens whose last hidden states are wanted."""
    places: Tensor
    """(M,) tokens that are prompts'."""
    lines: Lines | None = None
    """Where the sequences begin, if a kernel for unequal lengths attends."""
    offsets: dict[int, Tensor] = field(default_factory=dict)
    """By layer, what is added (M, H) at the prompts' places to the states that enter it."""
    first: int = 0
    """The lowest layer that is computed; those below it are passed by."""
    states: Tensor | None = None
    """(P, H) states that enter layer `first`, if any layer is passed by."""
    stop: int | None = None
    """The lowest layer that is not computed, with those above it (none: all are computed)."""
    left: KeysAndValues | None = None
    """By layer, keys and values of what stands left of every sequence."""
    only_keys: bool = False
    """Whether nothing is read, since `kept` is all that is wanted."""
    kept: KeysAndValues = field(default_factory=dict)
    """By layer, the keys and values that the pass leaves here with `only_keys`."""
    reached: Tensor | None = None
    """(P, H) states that entered layer `stop`, before anything was added; the pass leaves them here."""

    def entering(self, layer: int, hidden: Tensor) -> Tensor:
        """The hidden states that enter a layer, from those that the model would have it enter with."""
        if layer == self.first and self.states is not None:
            hidden = self.states.view(hidden.shape)
        if layer == self.stop:
            self.reached = hidden.flatten(0, 1)
        elif self.computes(layer) and layer in self.offsets:
            hidden = hidden.contiguous()
            offsets = self.offsets[layer].to(hidden.device, hidden.dtype)
            hidden.view(-1, hidden.shape[-1]).index_add_(0, self.places.to(hidden.device), offsets)
        return hidden

    def computes(self, layer: int) -> bool:
        """Whether the layer is computed in this pass, and not passed by."""
        return self.first <= layer and (self.stop is None or layer < self.stop)

    @property
    def n_tokens(self) -> int:
        """The number of tokens P."""
        return sum(group.n_tokens for group in self.groups)


class Layer(nn.Module):
    """A layer of the packed trunk, or of the trunk apart, which then serves one `call` only."""

    def __init__(self, layer: nn.Module, index: int, gives_tuple: bool, call: Pass | None = None) -> None:
        super().__init__()
        self.layer, self._index, self._gives_tuple, self._call = layer, index, gives_tuple, call

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_modules"]["layer"], name)  # models ask their layers what kind they are

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives back for the states that enter it in this pass, or these where it is passed by."""
        call = cast(Pass, self._call or kwargs.pop("packed"))
        hidden = call.entering(self._index, hidden_states)
        if not call.computes(self._index):
            return self.given_back(hidden)
        return self.layer(hidden, *args, **kwargs) if self._call else self.packed(hidden, call, args, kwargs)

    def packed(self, hidden: Tensor, call: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's output for all tokens."""
        left = call.left[self._index] if call.left else None
        kept: list[tuple[Tensor, Tensor]] | None = [] if call.only_keys else None
        output = self.layer(hidden, *args, packed=Attending(call.groups, left, kept=kept, lines=call.lines), **kwargs)
        if kept:
            self.keep(call, *kept[0])
        return output

    def keep(self, call: Pass, keys: Tensor, values: Tensor) -> None:
        """Leave in the pass the keys and values that a pass over prefixes is made for."""
        (group,) = call.groups
        keys, values = of_candidates(keys, group), of_candidates(values, group)
        if call.lines is None:  # else the kernel takes them as they lie
            keys, values = keys.contiguous(), values.contiguous()
        call.kept[self._index] = keys, values

    def given_back(self, hidden: Tensor) -> Any:
        """The hidden states in the form of the layer's output."""
        return (hidden,) if self._gives_tuple else hidden


class LastLayer(Layer):
    """The last layer of the packed trunk. It computes keys and values of all tokens, and everything else only for what
    is read.

    `keys_only` is the layer without what comes after its attention.
    """

    def __init__(self, layer: nn.Module, keys_only: nn.Module, index: int, gives_tuple: bool) -> None:
        super().__init__(layer, index, gives_tuple)
        self.keys_only = keys_only

    def packed(self, hidden: Tensor, call: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's output where it is read, and zeros elsewhere, since models count on as many tokens as before."""
        kept: list[tuple[Tensor, Tensor]] = []
        keys_only = Attending(call.groups, only_keys=True, kept=kept, lines=call.lines)
        self.keys_only(hidden, *args, packed=keys_only, **kwargs)
        if call.only_keys:
            self.keep(call, *kept[0])
            return self.given_back(hidden)
        left = call.left[self._index] if call.left else None
        attending = Attending(call.groups, left, given=kept[0], lines=call.lines)
        some = {name: _at(value, call) for name, value in kwargs.items()}
        output = self.layer(_at(hidden, call), *(_at(value, call) for value in args), packed=attending, **some)
        found = output[0] if isinstance(output, tuple) else output
        full = found.new_zeros(1, call.n_tokens, found.shape[-1])
        full[:, call.read.to(found.device)] = found
        return self.given_back(full)


def _at(value: Any, call: Pass) -> Any:
    """The tokens that are read, out of anything (1, P, ...)."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == call.n_tokens:
        return value[:, call.read.to(value.device)]
    return tuple(_at(item, call) for item in value) if isinstance(value, tuple) else value


class Forward:
    """The forward passes through a model's trunk: through `packed` if there is a packed copy of it, else apart.

    A packed trunk's attention goes through the `kernel` for sequences of unequal lengths if there is one.
    """

    def __init__(self, structure: Structure, packed: nn.Module | None, kernel: Kernel | None = None) -> None:
        self.structure, self.packed, self.kernel = structure, packed, kernel
        self._first_position = first_position(structure.trunk)

    @torch.inference_mode()
    def __call__(self, embeddings: Tensor, call: Pass) -> Tensor:
        """Compute the last hidden states (S, H) that are read, on the device of the embeddings (P, E)."""
        if self.packed is not None:
            positions = call.positions[None] + self._first_position
            output = self.packed(inputs_embeds=embeddings[None], position_ids=positions, packed=call)
        else:
            (group,) = call.groups
            output = self._apart(call)(inputs_embeds=embeddings.view(-1, group.length, embeddings.shape[-1]))
        states = output.last_hidden_state.flatten(0, 1)
        return cast(Tensor, states[call.read.to(states.device)].to(embeddings.device))

    def _apart(self, call: Pass) -> nn.Module:
        """The trunk, with layers made for this pass where it changes what enters them."""
        parts = self.structure
        if not call.offsets and not call.first and call.stop is None:
            return parts.trunk
        parts.require_layers()
        layers = {layer: Layer(layer, i, parts.layers_give_tuples, call) for i, layer in enumerate(parts.layers)}
        return replaced(parts.trunk, layers)
