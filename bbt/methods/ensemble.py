"""An ensemble is several trained classifiers, of any methods, whose log-probabilities are averaged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, SerializeAsAny

from bbt.backend import Backend
from bbt.errors import ConfigError, RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import labelling
from bbt.files import write_atomically
from bbt.methods import make_method
from bbt.methods.base import Method
from bbt.methods.black_box import BlackBox
from bbt.methods.saved import load_classifier
from bbt.runs.folder import write_result
from bbt.runs.log import EventLog
from bbt.runs.observer import Observer, Progress
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import log_softmax
from bbt.settings import MethodConfig
from bbt.tasks import Example, Task
from bbt.types import RowScores

FOLDER = "members"


class Ensemble(Method):
    """Several classifiers as one. Without `members`, `n_members` are trained by the method `of`, on the same split,
    each with a seed of its own: for a soft prompt another p0, another A and another search. What a config says in
    sections is that method's."""

    members: tuple[str, ...] = ()
    """Finished run folders on the same model and labels; their own cost is not counted again."""
    of: MethodConfig = MethodConfig()
    """The members' method, with its own settings."""
    n_members: int = Field(5, ge=2)
    """How many members are trained, where `members` names none."""
    member: SerializeAsAny[Method] = Field(BlackBox(), exclude=True)
    """The method `of`, made from its settings and sections."""

    @classmethod
    def configured(
        cls,
        name: str,
        settings: Mapping[str, Any],
        sections: Mapping[str, Mapping[str, Any]],
        defaults: Mapping[str, Mapping[str, Any]],
    ) -> "Method":
        """Make the ensemble as `Method.configured` does; the sections are handed on to the members' method.

        Raises:
            ConfigError: also for an ensemble of ensembles.
        """
        ensemble = super().configured(name, settings, {}, {})
        assert isinstance(ensemble, Ensemble)
        if ensemble.of.name == name:
            raise ConfigError("method.of: an ensemble has members of another method, not ensembles.")
        member = make_method(ensemble.of, sections, defaults)
        return ensemble.model_copy(update={"member": member})

    def tree(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The ensemble's own settings, and its members' sections; see `Method.tree`."""
        own, _ = super().tree()
        settings, sections = self.member.tree()
        return {**own, "of": {"name": self.of.name, **settings}}, sections

    def train(self, experiment: Experiment) -> Trained:
        """Train or load the members, and judge each of them and all of them together on dev.

        Raises:
            ConfigError: a member with other labels.
        """
        e, members = experiment, list[Member]()
        dev, train = list[RowScores](), list[RowScores]()
        n_members = len(self.members) or self.n_members
        e.observer.started(n_members, "member")
        for i in range(n_members):
            member = _loaded(Path(self.members[i]), e) if self.members else self._trained(e, i)
            members.append(member)
            dev.append(member.classifier.scores(e.split.dev, e.ledger))
            e.ledger.dev_queries += 1
            if e.calibration == "fitted":
                train.append(member.classifier.scores(e.split.train, e.ledger))
            verdict = e.judge(member.classifier, f"member {i + 1}", dev[i], train[i] if train else None)
            e.observer.progressed(Progress(i + 1, verdict.loss, verdict.metric))
        classifier = EnsembleClassifier(e.backend, tuple(members))
        verdict = e.judge(classifier, "ensemble", averaged(dev), averaged(train) if train else None)
        n_parameters = sum(member.n_parameters for member in members)
        return Trained(classifier, "ensemble", verdict, e.ledger.train_queries, n_parameters, {"manual": e.manual})

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the members, each from its folder.

        Raises:
            RunError: there are none.
        """
        folders = sorted((folder / FOLDER).glob("*"), key=lambda path: int(path.name))
        if not folders:
            raise RunError(f"{folder} holds no {FOLDER}: has its run finished? `bbt resume {folder}` goes on.")
        return EnsembleClassifier(backend, tuple(self._saved(path, backend, task) for path in folders))

    def _trained(self, e: Experiment, i: int) -> "Member":
        """Train member i on the experiment's own split."""
        seed = (e.seed * self.n_members + i) % 2**32
        facts = {**e.facts, "method": self.of.name, "label": self.member.label(self.of.name)}
        own = replace(e, seed=seed, log=EventLog(), observer=Observer(), facts=facts)
        trained = self.member.train(own)
        e.ledger.add(own.ledger)
        return Member(seed, labelling(trained.classifier), trained.n_parameters)

    def _saved(self, path: Path, backend: Backend, task: Task) -> "Member":
        """Load a member from its folder in `members/`; the copy of a run folder has a config of its own."""
        if (path / "prompt.safetensors").is_file() or (path / "config.yaml").is_file():
            return _member(path, load_classifier(path, backend)[1])
        return _member(path, labelling(self.member.load(path, backend, task)))


@dataclass(frozen=True)
class Member:
    """A trained classifier that is part of an ensemble."""

    seed: int
    """The seed of its training."""
    classifier: Classifier
    """The classifier itself."""
    n_parameters: int
    """How many numbers were tuned."""
    config: str | None = None
    """The text of the config.yaml of the run folder that it comes from (none: it was trained here)."""


@dataclass(frozen=True)
class EnsembleClassifier:
    """A classifier that averages its members, all on one model."""

    backend: Backend
    """The model of all members."""
    members: tuple[Member, ...]
    """The trained classifiers."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The mean (B, K) of the members' log-probabilities."""
        return averaged([member.classifier.scores(examples, ledger) for member in self.members])

    def save(self, folder: Path) -> None:
        """Write every member whole, as a run folder in `members/`."""
        info = self.backend.info
        for i, member in enumerate(self.members):
            own = folder / FOLDER / str(i)
            own.mkdir(parents=True, exist_ok=True)
            if member.config is not None:
                write_atomically(own / "config.yaml", member.config)
            member.classifier.save(own)
            facts = {
                "model": info.name,
                "fingerprint": info.fingerprint,
                "seed": member.seed,
                "n_parameters": member.n_parameters,
            }
            write_result(own, facts)


def averaged(scores: Sequence[RowScores]) -> RowScores:
    """The mean log-probabilities (B, K) of M classifiers' logits or log-probabilities, each (B, K)."""
    return np.asarray(log_softmax(np.stack(scores)).mean(axis=0), dtype=np.float32)


def _loaded(path: Path, e: Experiment) -> Member:
    """Load a run folder's classifier as a member, if it has the experiment's labels."""
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"method.members: {path} is not a run folder.")
    task, classifier = load_classifier(path, e.backend)
    if task.label_names != e.task.label_names:
        raise ConfigError(
            f"method.members: {path} has the labels {list(task.label_names)}, the task {list(e.task.label_names)}."
        )
    return _member(path, classifier)


def _member(path: Path, classifier: Classifier) -> Member:
    result = json.loads((path / "result.json").read_text(encoding="utf-8"))
    config = path / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else None
    return Member(result.get("seed", 0), classifier, result["n_parameters"], text)
