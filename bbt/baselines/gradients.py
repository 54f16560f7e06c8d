"""The capability that every method in this folder asks for."""

from typing import cast

from bbt.backend import Backend, GradientBackend
from bbt.errors import BackendError


def require_gradients(backend: Backend, method: str) -> GradientBackend:
    """The backend, whose model can be differentiated.

    Raises:
        BackendError: it is forward-only.
    """
    if not hasattr(backend, "trainable"):
        raise BackendError(
            f"{method} needs gradients, which {type(backend).__name__} cannot give: it is forward-only. Take "
            "model.backend: local, or a method that needs none, such as black-box or manual (bbt ls methods)."
        )
    return cast(GradientBackend, backend)
