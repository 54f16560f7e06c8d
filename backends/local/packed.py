"""A whole micro-batch as one row of tokens through a transformers model, with only what is read leaving the top.

Nothing here knows an architecture: `Forward` asks a model once whether it scores packed rows as it scores them apart.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from backends.local.attention import NAME, Kept, KeysAndValues, Packed, attention, keys_and_values
from backends.local.kernels import faster_forwards
from backends.local.layers import Layers
from backends.local.packing import Group


class PackedTrunk:
    """A frozen model that takes packed sequences.

    Raises:
        BackendError: the model has no list of its layers.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attention)
        self._model = model
        self._first_position = first_position(model)
        self._forwards = faster_forwards(layers.modules)
        last = layers.modules[-1]
        last.register_forward_pre_hook(_only_what_is_read, with_kwargs=True)
        last.register_forward_hook(_in_its_places, with_kwargs=True)
        model.base_model.register_forward_hook(_what_is_read, with_kwargs=True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model attends and computes as this trunk wants it."""
        config = self._model.config
        before = config._attn_implementation
        with ExitStack() as stack:
            for module, forward in self._forwards.items():
                module.forward = forward
                stack.callback(module.__dict__.pop, "forward")
            config._attn_implementation = NAME
            try:
                yield
            finally:
                config._attn_implementation = before

    @torch.inference_mode()
    def logits(self, embeddings: Tensor, positions: Tensor, packed: Packed) -> Tensor:
        """Embeddings (P, H) of tokens at `positions` (P,) of their rows -> (S, K) logits."""
        output = self._model(
            inputs_embeds=embeddings[None], position_ids=positions[None] + self._first_position, packed=packed
        )
        return cast(Tensor, output.logits[0])

    def keys_and_values(self, embeddings: Tensor, positions: Tensor, groups: tuple[Group, ...]) -> KeysAndValues:
        """Each attention's keys and values of prefixes of one length."""
        packed = Packed(groups, positions, is_prefix=True)
        try:
            self.logits(embeddings, positions, packed)
        except Kept:
            return keys_and_values(packed)
        raise AssertionError("a forward pass goes through all layers")


def _only_what_is_read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The last layer is entered twice: for the keys and values of all tokens, and for what is read."""
    packed = kwargs.get("packed")
    if packed is None:
        return None
    packed.stop = True
    try:
        module.forward(*args, **kwargs)
    except Kept:
        if packed.is_prefix:
            raise
    packed.stop = False
    return (
        tuple(_rows(value, packed) for value in args),
        {name: _rows(value, packed) for name, value in kwargs.items()},
    )


def _in_its_places(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Models count on as many tokens after the last layer as before it."""
    packed = kwargs.get("packed")
    if packed is None:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    full = hidden.new_zeros(1, packed.n_tokens, hidden.shape[-1])
    full[:, packed.read] = hidden
    return (full, *output[1:]) if isinstance(output, tuple) else full


def _what_is_read(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """All that the head gets."""
    if kwargs.get("packed") is not None:
        output["last_hidden_state"] = output.last_hidden_state[:, kwargs["packed"].read]
    return output


def _rows(value: Any, packed: Packed) -> Any:
    """Of anything (1, P, ...) the tokens that are read."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == packed.n_tokens:
        return value[:, packed.read]
    if isinstance(value, tuple):
        return tuple(_rows(item, packed) for item in value)
    return value


def first_position(model: Any) -> int:
    """The id of a row's first position: RoBERTa's come after the padding index."""
    embeddings = getattr(model.base_model, "embeddings", None)
    offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if offset is None else int(offset) + 1
