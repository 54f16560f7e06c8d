"""A method is its settings, and the way in which they become a classifier."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bbt.backend import Backend
from bbt.config import SECTIONS, validated
from bbt.errors import ConfigError, RunError, unknown
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator
from bbt.runs.estimate import Gauge, PlannedQueries
from bbt.settings import CriterionConfig, Strict
from bbt.tasks import Example, Task


class Method(Strict):
    """A method that makes a classifier of an experiment's rows. Its fields are its settings: the sections of a config
    that it reads, under their names (`SECTIONS`), and what a config gives under `method:` beside the name."""

    replays: ClassVar[bool] = False
    """Whether its log is its checkpoint, so that a stopped run goes on where it stopped and a finished one can be
    extended. Any other method begins again from its seed when its run is resumed."""

    takes: ClassVar[tuple[str, ...]] = ("label_words",)
    """How the tasks that it takes are scored: values of `task.scored_by`."""

    @abstractmethod
    def train(self, experiment: Experiment) -> Trained:
        """Train on the experiment's train rows, select on its dev rows; every cost goes into its ledger."""

    def plan(self, references: bool) -> PlannedQueries | None:
        """The queries that `train` will make at most, and those of the test (with `references` or without); None: they
        cannot be known beforehand."""
        return None

    def worded(self, task: Task) -> Task:
        """The task in the words that the method trains with; by default the task as it is."""
        return task

    def wordings(self, task: Task, train: Sequence[Example], seed: int, gauge: Gauge) -> Sequence[Task]:
        """The task in all the words that dev judges, an equal number of prompts in each; by default as it is. `train`
        are the train rows, and the gauge measures what the model has room for."""
        return [task]

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier | Generator:
        """Load what `train` made, from the run folder in which it was saved. A soft prompt needs none of this: it loads
        by itself.

        Raises:
            RunError: there is nothing to load.
        """
        raise RunError(f"{folder} holds no prompt.safetensors: has its run finished? `bbt resume {folder}` goes on.")

    def label(self, name: str) -> str:
        """What tables and run folders call the method that goes by `name` in a config."""
        return name.replace(":", "-")

    @classmethod
    def configured(
        cls,
        name: str,
        settings: Mapping[str, Any],
        sections: Mapping[str, Mapping[str, Any]],
        defaults: Mapping[str, Mapping[str, Any]],
    ) -> "Method":
        """Make the method called `name`, with its own settings and the sections that it reads; of the `defaults` it
        takes what it knows.

        Raises:
            ConfigError: a setting or section that it does not read, or an impossible value.
        """
        kinds = cls.sections_read()
        for section in sections:
            if section not in kinds:
                read = f"{name} reads {', '.join(kinds)}" if kinds else f"{name} reads none of the sections"
                raise ConfigError(f"config: unknown key {section!r} for method {name}: {read}.")
        given = {
            section: {**_known(kind, defaults.get(section, {})), **sections.get(section, {})}
            for section, kind in kinds.items()
        }
        if given.get("objective", {}).get("loss") == "negative_metric" and "selection" in given:
            given["selection"] = {"by": "metric", **given["selection"]}  # dev chooses by what is sought
        own = {section: validated(kind, given[section], section) for section, kind in kinds.items()}
        for key in settings:
            if key in kinds or key not in cls.model_fields:
                valid = [f"method.{field}" for field in cls.model_fields if field not in kinds]
                raise ConfigError(f"config: {unknown('key', f'method.{key}', valid)}")
        return validated(cls, {**settings, **own}, "method")

    @classmethod
    def sections_read(cls) -> dict[str, type[Strict]]:
        """The sections of a config that the method reads, by name, and the model of what each may hold."""
        kinds = {name: cls.model_fields[name].annotation for name in SECTIONS if name in cls.model_fields}
        return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Strict)}

    def tree(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The method's own settings, and its sections, as nested dicts with every value resolved."""
        tree, read = self.model_dump(mode="json"), self.sections_read()
        return {k: v for k, v in tree.items() if k not in read}, {k: v for k, v in tree.items() if k in read}


class SelectingMethod(Method):
    """A method that tries several states and keeps the one that dev judges best."""

    selection: CriterionConfig = CriterionConfig()
    """What dev judges the states by."""


def _known(kind: type[Strict], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a section's values that this kind of section has."""
    return {key: value for key, value in values.items() if key in kind.model_fields}
