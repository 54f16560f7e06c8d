"""Searches over prompts of words share this: nothing is scored twice, and the outcome can be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bbt.backend import Backend, HardBackend, require
from bbt.errors import ConfigError
from bbt.experiment.classifiers import Classifier, HardPromptClassifier
from bbt.experiment.experiment import Trained
from bbt.methods.base import Method
from bbt.methods.prompt_search import PromptSearch
from bbt.prompts.hard import HardPrompt
from bbt.scoring.remembering import RememberingJudge, RememberingObjective
from bbt.search.tuner import Candidate
from bbt.tasks import Task
from bbt.types import TokenIds


class HardMethod(Method):
    """A method whose prompts are words."""

    replays: ClassVar[bool] = True

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the prompt from `prompt.json`."""
        return HardPromptClassifier.loaded(HardPrompt.load(folder), backend)


class HardSearch(PromptSearch):
    """A search whose space holds token ids (n, T)."""

    def __post_init__(self) -> None:
        require(self.experiment.backend, HardBackend)
        if self._asynchronous:
            raise ConfigError("optimizer.asynchronous is for soft prompts: of words none is to be scored twice.")
        super().__post_init__()

    def run(self) -> Trained:
        """Search until the budget is spent, or no new prompt is found any more."""
        trained = super().run()
        assert isinstance(trained.classifier, HardPromptClassifier)
        return replace(trained, prompt_text=trained.classifier.prompt.text)

    def _objective(self) -> RememberingObjective:
        e = self.experiment
        return RememberingObjective(self.train, self._loss(), e.ledger, e.calibration, self.content_free)

    def _judge(self) -> RememberingJudge:
        e = self.experiment
        return RememberingJudge(self.dev, e.task, e.ledger, e.calibration, self.train, self.content_free)

    def _references(self) -> dict[str, Classifier]:
        return {"manual": self._hard(self.space.no_prompt[0]), "untuned": self._hard(self.space.p0[0])}

    def _classifier(self, best: Candidate) -> HardPromptClassifier:
        return self._hard(best.prompt, who=best.who, train_queries=best.train_queries, dev=best.verdict.facts())

    def _hard(self, token_ids: TokenIds, **facts: Any) -> HardPromptClassifier:
        """Make a classifier of a prompt (T,) with its provenance, to which `facts` add."""
        e, task, ids = self.experiment, self.experiment.task, np.asarray(token_ids).tolist()
        prompt = HardPrompt(
            require(e.backend, HardBackend).prompt_text(ids),
            tuple(ids),
            e.backend.info.name,
            task.template.source,
            task.label_words,
            task.label_names,
            e.provenance(task, **facts),
        )
        return HardPromptClassifier(e.backend, task, prompt)
