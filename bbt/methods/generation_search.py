"""The search over soft prompts p0 + A z for a task whose answer is a text."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bbt.errors import ConfigError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.generators import Generator
from bbt.methods.prompt_search import SoftSearch, found
from bbt.scoring.judge import DevJudge
from bbt.scoring.objective import TrainingLoss
from bbt.scoring.targets import TargetJudge, TargetObjective, target_rows
from bbt.search.tuner import Candidate


@dataclass
class GenerationSearch(SoftSearch):
    """A search that minimises the loss of the targets' tokens, or minus the metric of what is generated; dev rows judge
    by either.

    Raises:
        ConfigError: a prompt after the embedding LayerNorm, or a loss that is for labels.
    """

    def __post_init__(self) -> None:
        if self.settings.prompt.placement == "layernorm":
            raise ConfigError(
                f"prompt.placement: {self.settings.prompt.placement} does not go with a task whose answer is a text."
            )
        super().__post_init__()

    def _objective(self) -> TrainingLoss:
        e = self.experiment
        loss = self.settings.objective.loss or e.task.loss
        return TargetObjective(target_rows(self.train), loss, e.ledger)

    def _judge(self) -> DevJudge:
        return TargetJudge(target_rows(self.dev), self.experiment.ledger)

    def _classifier(self, best: Candidate) -> Classifier | Generator:
        return self.experiment.generator(np.asarray(best.prompt), **found(best))

    def _references(self) -> Mapping[str, Classifier | Generator]:
        e = self.experiment
        return {"manual": e.generator(e.no_prompt), "untuned": e.generator(self.space.p0[0])}
