"""bbt: tune prompts of language models by their forward pass alone (Black-Box Tuning and what came after).

    import bbt
    result = bbt.tune({"task": {"name": "sst2"}, "budget": {"queries": 500}})

What people need is here by name, each imported when it is first used: `import bbt` takes no time, and PyTorch is not
imported before a local model is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from backends.local import LocalBackend as LocalBackend
    from bbt.api import Outcome as Outcome
    from bbt.api import estimate as estimate
    from bbt.api import resume as resume
    from bbt.api import run as run
    from bbt.api import tune as tune
    from bbt.backend import Backend as Backend
    from bbt.backend import DeepBackend as DeepBackend
    from bbt.backend import DeviceBackend as DeviceBackend
    from bbt.backend import FeatureBackend as FeatureBackend
    from bbt.backend import GradientBackend as GradientBackend
    from bbt.backend import HardBackend as HardBackend
    from bbt.backend import LikelihoodBackend as LikelihoodBackend
    from bbt.backend import RemoteBackend as RemoteBackend
    from bbt.config import Config as Config
    from bbt.config import load_config as load_config
    from bbt.config import make_config as make_config
    from bbt.errors import BackendError as BackendError
    from bbt.errors import BbtError as BbtError
    from bbt.errors import ConfigError as ConfigError
    from bbt.errors import DataError as DataError
    from bbt.errors import EndpointError as EndpointError
    from bbt.errors import LabelWordError as LabelWordError
    from bbt.errors import PromptError as PromptError
    from bbt.errors import RunError as RunError
    from bbt.estimator import PromptClassifier as PromptClassifier
    from bbt.experiment import Experiment as Experiment
    from bbt.methods.black_box import BlackBox as BlackBox
    from bbt.predictor import Predictor as Predictor
    from bbt.prompts import HardPrompt as HardPrompt
    from bbt.prompts import SoftPrompt as SoftPrompt
    from bbt.runs.observer import Observer as Observer
    from bbt.runs.observer import Progress as Progress
    from bbt.tasks import Example as Example
    from bbt.tasks import Split as Split
    from bbt.tasks import Task as Task
    from bbt.tasks import Template as Template

_NAMES = {
    "backends.local": "LocalBackend",
    "bbt.api": "Outcome estimate resume run tune",
    "bbt.backend": "Backend DeepBackend DeviceBackend FeatureBackend GradientBackend HardBackend LikelihoodBackend "
    "RemoteBackend",
    "bbt.config": "Config load_config make_config",
    "bbt.errors": "BackendError BbtError ConfigError DataError EndpointError LabelWordError PromptError RunError",
    "bbt.estimator": "PromptClassifier",
    "bbt.experiment": "Experiment",
    "bbt.methods.black_box": "BlackBox",
    "bbt.predictor": "Predictor",
    "bbt.prompts": "HardPrompt SoftPrompt",
    "bbt.runs.observer": "Observer Progress",
    "bbt.tasks": "Example Split Task Template",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'bbt' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names, and what every module has."""
    return sorted({*globals(), *__all__})
