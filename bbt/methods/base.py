"""What a method is: its settings, and how they become a classifier."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from bbt.backend import Backend
from bbt.config import Config, Strict
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.runs.estimate import Plan
from bbt.tasks import Task


class Method(Strict):
    """Settings (the fields) of a method that makes a classifier of an experiment's rows.

    `replays`: its log is its checkpoint, so that a stopped run goes on where it stopped and a finished one can be
    extended. Any other method begins again from its seed when its run is resumed.
    """

    replays: ClassVar[bool] = False

    @abstractmethod
    def train(self, experiment: Experiment) -> Trained:
        """Train on the experiment's train rows, select on its dev rows; every cost goes into its ledger."""

    def plan(self, config: Config) -> Plan | None:
        """The queries that `train` will make at most; None: they cannot be known beforehand."""
        return None

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """What `train` made, from the run folder it was saved in. Soft prompts need none: they load by themselves.

        Raises:
            RunError: there is nothing to load.
        """
        raise RunError(f"{folder} holds no prompt.safetensors: has its run finished? `bbt resume {folder}` goes on.")
