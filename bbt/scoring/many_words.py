"""A training loss and a judge of prompts whose labels are read from many words, by weights that are fitted to each
prompt."""

from collections.abc import Callable

import numpy as np

from bbt.scoring.judge import Judge, Verdict, verdicts
from bbt.scoring.ledger import Ledger
from bbt.scoring.objective import Objective
from bbt.scoring.readout import Strength, left_out_scores
from bbt.scoring.scorer import Scorer
from bbt.tasks import Task
from bbt.types import Labels, Losses, Scores


class WordsObjective(Objective):
    """The training loss of prompts by the scores of left-out rows: each row is answered by a readout of the others."""

    def __init__(
        self,
        scorer: Scorer,
        loss: Callable[[Scores, Labels], Losses],
        ledger: Ledger,
        n_labels: int,
        strength: Strength,
    ) -> None:
        super().__init__(scorer, loss, ledger)
        self._n_labels, self._strength = n_labels, strength

    def _calibrated(self, scores: Scores, scores_by: Callable[[Scorer], Scores]) -> Scores:
        return left_out_scores(scores, self._scorer.labels, self._n_labels, self._strength)


class WordsJudge(Judge):
    """A judge of prompts on all labelled rows, train and dev, each of which is answered by a readout of all others.

    Every prompt gets weights of its own, whose noise a few dev rows do not tell from a gain, so the train rows judge as
    well (examples/RESULTS.md). They are scored as a part of the dev query.
    """

    def __init__(self, dev: Scorer, task: Task, ledger: Ledger, train: Scorer, strength: Strength) -> None:
        super().__init__(dev, task, ledger)
        self._task, self._seen, self._strength = task, train, strength

    def _judged(self, scores_by: Callable[[Scorer], Scores]) -> list[Verdict]:
        scores = np.concatenate([scores_by(self._scorer), scores_by(self._seen)], axis=1)
        labels = np.concatenate([self._scorer.labels, self._seen.labels])
        self._ledger.dev_queries += len(scores)
        left_out = left_out_scores(scores, labels, len(self._task.label_words), self._strength)
        return verdicts(self._task, labels, left_out)

    @property
    def n_examples(self) -> int:
        """The number of labelled rows."""
        return len(self._scorer.labels) + len(self._seen.labels)
