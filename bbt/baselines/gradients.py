"""The capability that every method in this folder asks for."""

from bbt.backend import Backend, GradientBackend
from bbt.errors import BackendError


def require_gradients(backend: Backend, method: str) -> GradientBackend:
    """The backend, whose model can be differentiated.

    Raises:
        BackendError: it is forward-only.
    """
    if isinstance(backend, GradientBackend):
        return backend
    raise BackendError(
        f"{method} needs gradients, which {type(backend).__name__} cannot give: it is forward-only. Use model.backend: "
        "local, or a method that needs none: black-box, in-context, manual, prompt-selection."
    )
