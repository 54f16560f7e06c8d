"""bbt: tune prompts of language models by their forward pass alone (Black-Box Tuning and what came after).

    import bbt
    result = bbt.tune({"task": {"name": "sst2"}, "budget": {"queries": 500}})

Heavy imports come late: `import bbt` takes no time.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from bbt.api import resume, run, tune
    from bbt.predictor import Predictor
    from bbt.prompts.soft import SoftPrompt

_HOME = {
    "Predictor": "bbt.predictor",
    "SoftPrompt": "bbt.prompts",
    "resume": "bbt.api",
    "run": "bbt.api",
    "tune": "bbt.api",
}

__all__ = ["Predictor", "SoftPrompt", "__version__", "resume", "run", "tune"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'bbt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
