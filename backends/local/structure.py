"""The parts of a transformers model are found by watching one forward pass: no architecture needs code of its own.

The *trunk* turns embeddings into the last hidden states; what comes after it is the head. The *layers* are a chain
inside the trunk.
"""

import copy
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from backends.local.spread import is_spread, rebind
from bbt.errors import BackendError

LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Rotary positions whose frequencies depend on the longest row of a batch, and are kept in the model meanwhile."""


@dataclass(eq=False)
class Visit:
    """One call of a module."""

    module: nn.Module
    """The module that was called."""
    hidden: Tensor | None
    """The first tensor that it was given."""
    output: Any = None
    """What it gave back."""
    ended: bool = False
    """Whether the call has ended."""

    @property
    def states(self) -> Any:
        """The output, or the first of several."""
        return self.output[0] if isinstance(self.output, tuple) else self.output


@dataclass(frozen=True)
class Structure:
    """The parts of a model."""

    trunk: nn.Module
    """The module that turns embeddings (S, N, E) into the last hidden states (S, N, H)."""
    output_type: type[Any]
    """The type of output in which the trunk puts its last hidden states."""
    layers: tuple[nn.Module, ...]
    """(L,) layers from the bottom up, each fed with what the one below it gives; empty if there is no such chain."""
    layers_give_tuples: bool
    """Whether a layer returns its hidden states in a tuple."""
    hidden_size: int
    """The hidden size H."""
    layernorm: nn.Module | None
    """The LayerNorm after the word embeddings (none: something besides `projection` stands between it and the first
    layer)."""
    projection: nn.Linear | None
    """The layer that widens the embeddings to the hidden size after that LayerNorm (none: they have it)."""
    depends_on_length: bool
    """Whether a row's scores depend on the longest row beside it, so that rows must not be computed at the same
    time."""
    is_spread: bool = False
    """Whether the model is on several devices, or has weights that are fetched when they are needed."""
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """What lets one thread at a time call a model that keeps something of a call in its modules meanwhile."""

    def require_layernorm(self) -> None:
        """Check that a difference can be added after the embedding LayerNorm.

        Raises:
            BackendError: there is no such place.
        """
        if self.layernorm is None:
            raise BackendError(
                f"{type(self.trunk).__name__} has no LayerNorm after its embeddings; use prompt.placement: embedding."
            )

    def require_layers(self) -> None:
        """Check that something can be added between the layers.

        Raises:
            BackendError: the model is no chain of layers.
        """
        if not self.layers:
            raise BackendError(
                f"{type(self.trunk).__name__} is no chain of layers that each take the states of the one below: "
                "deep prompts have no place there; use another method than bbtv2."
            )


def structure_of(model: Any) -> Structure:
    """Find a model's parts by watching it with two rows of three tokens.

    Raises:
        BackendError: it has no part that gives hidden states.
    """
    name = type(model).__name__
    words = word_embeddings(model)
    visits = watched(model, words[torch.arange(6, device=words.device) % len(words)].view(2, 3, -1))
    inside = set(model.base_model.modules()) - {model}
    trunk = next((visit for visit in visits if visit.module in inside), None)
    if trunk is None or not isinstance(getattr(trunk.output, "last_hidden_state", None), Tensor):
        raise BackendError(f"{name} has no part of its own that gives hidden states; bbt cannot score with it.")
    chain = _chain(trunk.module, visits)
    layernorm, projection = _embedding_layernorm(trunk.module, chain, visits)
    depends_on_length = any(kind in str(getattr(model.config, "rope_parameters", "")) for kind in LENGTH_DEPENDENT)
    spread = is_spread(model)
    return Structure(
        trunk.module,
        type(trunk.output),
        tuple(visit.module for visit in chain),
        bool(chain) and isinstance(chain[0].output, tuple),
        int(trunk.output.last_hidden_state.shape[-1]),
        layernorm,
        projection,
        depends_on_length,
        spread,
        threading.Lock() if depends_on_length or spread else nullcontext(),
    )


@torch.inference_mode()
def watched(model: Any, embeddings: Tensor, **arguments: Any) -> list[Visit]:
    """The calls of all modules in one forward pass, in the order in which they begin."""
    visits: list[Visit] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        visits.append(Visit(module, next(given, None)))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        last = next(visit for visit in reversed(visits) if visit.module is module and not visit.ended)
        last.output, last.ended = output, True

    with ExitStack() as stack:
        for module in set(model.modules()):
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end).remove)
        model(inputs_embeds=embeddings, **arguments)
    return visits


def _chain(trunk: nn.Module, visits: list[Visit]) -> list[Visit]:
    """The list of layers with the most weights of which each is called once, on what the one before it gave."""
    called: dict[nn.Module, list[Visit]] = {}
    for visit in visits:
        called.setdefault(visit.module, []).append(visit)
    chains = []
    for modules in trunk.modules():
        if isinstance(modules, nn.ModuleList) and len(modules):
            chain = [visit for module in modules for visit in called.get(module, [])]
            if len(chain) == len(modules) == len({visit.module for visit in chain}) and _is_fed_on(chain):
                chains.append(chain)
    return max(chains, key=lambda chain: sum(_size(visit.module) for visit in chain), default=[])


def _is_fed_on(chain: list[Visit]) -> bool:
    """Whether every member takes states (2, 3, H), and takes what the one before it gives."""
    hidden = chain[0].hidden
    shape = None if hidden is None else hidden.shape
    below = (None, *(visit.states for visit in chain))
    return all(
        visit.hidden is not None
        and visit.hidden.shape == shape == getattr(visit.states, "shape", None)
        and visit.hidden.shape[:2] == (2, 3)
        and (fed is None or fed is visit.hidden)
        for visit, fed in zip(chain, below, strict=False)
    )


def _embedding_layernorm(
    trunk: nn.Module, chain: list[Visit], visits: list[Visit]
) -> tuple[nn.Module | None, nn.Linear | None]:
    """Find the LayerNorm of `embeddings`, and the projection between it and the first layer."""
    layernorm = getattr(getattr(trunk, "embeddings", None), "LayerNorm", None)
    begun = [visit.module for visit in visits]
    if not chain or layernorm not in begun:
        return None, None
    between = visits[begun.index(layernorm) + 1 : begun.index(chain[0].module)]
    does = [v.module for v in between if not (any(v.module.children()) or isinstance(v.module, nn.Dropout))]
    if not does:
        return layernorm, None
    return (layernorm, does[0]) if len(does) == 1 and isinstance(does[0], nn.Linear) else (None, None)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def replaced(module: nn.Module, by: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The module with others in the places of some that it holds: a copy where anything changes, which shares
    everything else, weights included."""
    if module in by:
        return by[module]
    children = {name: child and replaced(child, by) for name, child in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    other = copy.copy(module)
    other.__dict__.update({name: copy.copy(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks")})
    other.__dict__["_modules"] = children
    rebind(other)
    return other


def word_embeddings(model: Any) -> Tensor:
    """The vectors (vocabulary, E) that enter the model for each token: Gemma's embeddings are scaled first."""
    module = model.get_input_embeddings()
    if type(module) is nn.Embedding:
        return module.weight
    with torch.no_grad():
        return cast(Tensor, module(torch.arange(len(module.weight), device=module.weight.device)))


@torch.inference_mode()
def embedding_scale(encoder: Any) -> float:
    """What an encoder multiplies word embeddings by where it is given token ids, and not where it is given embeddings
    (Pegasus' kind); 1 elsewhere.

    Raises:
        BackendError: it makes something else of token ids than of their word embeddings.
    """
    words = word_embeddings(encoder)
    ids = torch.arange(3, 9, device=words.device)[None] % len(words)
    expected = encoder(input_ids=ids).last_hidden_state.float()
    for scale in (1.0, float(getattr(encoder, "embed_scale", 1.0))):
        found = encoder(inputs_embeds=words[ids] * scale).last_hidden_state.float()
        if torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            return scale
    raise BackendError(f"{type(encoder).__name__} makes something else of token ids than of their word embeddings.")


def first_position(trunk: nn.Module) -> int:
    """The id of a row's first position: RoBERTa's ids come after the padding index."""
    embeddings = getattr(trunk, "embeddings", None)
    offset = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if offset is None else int(offset) + 1
