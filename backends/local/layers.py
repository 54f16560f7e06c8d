"""The layers of a transformers model: entered from below, and left before the last.

Hooks on the model's own list of layers, so that no architecture needs code of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor, nn

from bbt.errors import BackendError

Enter: TypeAlias = Callable[[int, Tensor], Tensor]
"""(layer, hidden states) -> the hidden states that enter the layer instead."""


class _Reached(Exception):  # noqa: N818  # not an error
    """The layer that was asked for: the rest of the forward pass is dropped."""


class Layers:
    """The list of layers of a model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tuples = False

    @contextmanager
    def entered(self, enter: Enter, start: int = 0) -> Iterator[None]:
        """Inside, layers below `start` do nothing and `enter` has a say before each of the others.

        Raises:
            BackendError: the model has no list of its layers.
        """
        layers = self.modules
        with ExitStack() as stack:
            for layer in layers[:start]:
                layer.forward = self._pass
                stack.callback(layer.__dict__.pop, "forward")
            for i, layer in enumerate(layers[start:], start):
                stack.enter_context(layer.register_forward_pre_hook(_before(i, enter), with_kwargs=True, prepend=True))
            stack.enter_context(layers[0].register_forward_hook(self._watch))
            yield

    @contextmanager
    def until(self, stop: int) -> Iterator[list[Tensor]]:
        """A forward pass inside ends before layer `stop`; the list then holds the hidden states that enter it."""
        found: list[Tensor] = []

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        handle = self.modules[stop].register_forward_pre_hook(leave, with_kwargs=True, prepend=True)
        try:
            yield found
        except _Reached:
            pass
        finally:
            handle.remove()

    @cached_property
    def modules(self) -> nn.ModuleList:
        """From the bottom up.

        Raises:
            BackendError: the model has no list of its layers.
        """
        n_layers = self._model.config.num_hidden_layers
        for module in self._model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == n_layers:
                return module
        raise BackendError(f"{type(self._model).__name__} has no list of its {n_layers} layers.")

    def _pass(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self._tuples else hidden_states

    def _watch(self, module: nn.Module, args: Any, output: Any) -> None:
        """Some models' layers return tuples; what is skipped must look alike."""
        self._tuples = isinstance(output, tuple)


def _before(layer: int, enter: Enter) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (enter(layer, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": enter(layer, kwargs["hidden_states"])}

    return hook
