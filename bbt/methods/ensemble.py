"""Ensembling: several trained classifiers, of any methods, whose log-probabilities are averaged."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from bbt.backend import Backend
from bbt.config import Config, MethodConfig, load_config
from bbt.errors import ConfigError, RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.files import write_atomically
from bbt.methods import load_method
from bbt.methods.base import Method
from bbt.methods.saved import load_classifier
from bbt.runs.folder import write_result
from bbt.runs.observer import Progress
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import log_softmax
from bbt.tasks import Example, Task
from bbt.types import RowScores

FOLDER = "members"


class Ensemble(Method):
    """The `members` are finished run folders on the same model and labels; their own cost is not counted again.

    Without any, `n_members` are trained by the method `of`, on the same split, each with a seed of its own: for a
    soft prompt another p0, another A and another search.
    """

    members: tuple[str, ...] = ()
    of: MethodConfig = MethodConfig()
    n_members: int = Field(5, ge=2)

    def train(self, experiment: Experiment) -> Trained:
        """Train or load the members, judge each and all of them together on dev.

        Raises:
            ConfigError: a member with other labels, or an ensemble of ensembles.
        """
        e, members, scores = experiment, [], []
        n_members = len(self.members) or self.n_members
        e.observer.started(n_members, "member")
        for i in range(n_members):
            member = _loaded(Path(self.members[i]), e) if self.members else self._trained(e, i)
            members.append(member)
            scores.append(member.classifier.scores(e.split.dev, e.ledger))
            e.ledger.dev_queries += 1
            verdict = e.judge_scores(scores[i], f"member {i + 1}")
            e.observer.progressed(Progress(i + 1, verdict.loss, verdict.metric))
        verdict = e.judge_scores(averaged(scores), "ensemble")
        classifier = EnsembleClassifier(e.backend, tuple(members))
        n_parameters = sum(member.n_parameters for member in members)
        return Trained(classifier, "ensemble", verdict, e.ledger.train_queries, n_parameters, {"manual": e.manual})

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """The members, each from its folder.

        Raises:
            RunError: there are none.
        """
        folders = sorted((folder / FOLDER).glob("*"), key=lambda path: int(path.name))
        if not folders:
            raise RunError(f"{folder} holds no {FOLDER}: has its run finished? `bbt resume {folder}` goes on.")
        return EnsembleClassifier(backend, tuple(_member(path, load_classifier(path, backend)[1]) for path in folders))

    def _trained(self, e: Experiment, i: int) -> "Member":
        """Member i, trained on the experiment's own split."""
        if self.of.name == "ensemble":
            raise ConfigError("method.of: an ensemble has members of another method, not ensembles.")
        seed = (e.config.seed * self.n_members + i) % 2**32
        data = e.config.data
        if data.seed is None:
            data = data.model_copy(update={"seed": e.config.seed})
        config = e.config.model_copy(update={"method": self.of, "seed": seed, "data": data})
        own = Experiment(config, e.backend)
        trained = load_method(self.of).train(own)
        e.ledger.add(own.ledger)
        return Member(config, trained.classifier, trained.n_parameters)


@dataclass(frozen=True)
class Member:
    """A trained classifier, the config of its run, and how many numbers were tuned."""

    config: Config
    classifier: Classifier
    n_parameters: int


@dataclass(frozen=True)
class EnsembleClassifier:
    """Members on one model."""

    backend: Backend
    members: tuple[Member, ...]

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """(B, K) mean log-probabilities."""
        return averaged([member.classifier.scores(examples, ledger) for member in self.members])

    def save(self, folder: Path) -> None:
        """Every member whole, as a run folder in `members/`."""
        info = self.backend.info
        for i, member in enumerate(self.members):
            own = folder / FOLDER / str(i)
            own.mkdir(parents=True, exist_ok=True)
            write_atomically(own / "config.yaml", member.config.to_yaml())
            member.classifier.save(own)
            facts = {"model": info.name, "fingerprint": info.fingerprint, "n_parameters": member.n_parameters}
            write_result(own, facts)


def averaged(scores: Sequence[RowScores]) -> RowScores:
    """M times (B, K) logits or log-probabilities -> (B, K) mean log-probabilities."""
    return np.asarray(log_softmax(np.stack(scores)).mean(axis=0), dtype=np.float32)


def _loaded(path: Path, e: Experiment) -> Member:
    """A run folder's classifier, if it tells the experiment's labels apart."""
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
    return Member(load_config(path / "config.yaml"), classifier, result["n_parameters"])
