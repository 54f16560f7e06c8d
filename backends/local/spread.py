"""A model larger than one GPU is spread over several devices, and the copies that are made of its modules are as well.

`transformers` puts the weights where its `device_map` says, through accelerate, whose hooks stand in the modules: they
bring what a module is given to its device, and fetch the weights that are kept in the host's memory or on disk.
"""

import functools
import importlib.util
import types
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bbt.errors import BackendError, unknown

DeviceMap: TypeAlias = str | Mapping[str, int | str]
"""One of `BY_ITSELF`, or by module the number or the name of its device: `cpu` and `disk` are for weights that are
fetched when they are needed."""
BY_ITSELF = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate finds out itself what has room where."""


def check_device_map(device_map: DeviceMap, device: str) -> None:
    """Check that a device map can be followed.

    Raises:
        BackendError: it is no such map, a device is named besides, or accelerate is missing.
    """
    if not isinstance(device_map, Mapping) and device_map not in BY_ITSELF:
        raise BackendError(f"{unknown('device_map', str(device_map), BY_ITSELF)} Or give a device for each module.")
    if device != "auto":
        raise BackendError(f"give device: {device} or device_map, not both: the map says where each part computes.")
    if importlib.util.find_spec("accelerate") is None:
        raise BackendError("device_map needs the package accelerate: pip install 'bbt-prompt[large]'.")


def is_spread(module: nn.Module) -> bool:
    """Whether accelerate's hooks stand in the module: it is on several devices, or has weights elsewhere."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())


def weight_of(module: Any, like: Tensor, name: str = "weight") -> Tensor | None:
    """A module's weight: on its own device, or fetched to that of `like` where it is kept elsewhere; None where the
    module has none of that name."""
    weight: Tensor | None = getattr(module, name)
    if weight is None or not weight.is_meta:
        return weight
    fetched: Tensor = module._hf_hook.weights_map[name].to(like.device, weight.dtype)
    return fetched


def values_of(model: Any, name: str) -> Tensor:
    """The values of a model's parameter by its name, wherever they are kept."""
    path, _, last = name.rpartition(".")
    found = weight_of(model.get_submodule(path), torch.empty(0), last)
    assert found is not None, "parameters are no None"
    return found


def rebind(copied: Any) -> None:
    """Have a copy of a module run itself when it is called, and not the module that it was copied from."""
    if "_old_forward" in vars(copied):
        run = types.MethodType(copied._old_forward.__func__, copied)
        copied.forward = functools.update_wrapper(functools.partial(copied.forward.func, copied), run)
        copied._old_forward = run


def hooks_of(module: nn.Module) -> dict[int, Any]:
    """The hooks of a module and its parts by their identity, which a deep copy is to share: they know the weights that
    are kept elsewhere."""
    return {id(part._hf_hook): part._hf_hook for part in module.modules() if hasattr(part, "_hf_hook")}


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that hold weights of a model."""
    return sorted({weight.device for weight in model.parameters() if not weight.is_meta}, key=str)
