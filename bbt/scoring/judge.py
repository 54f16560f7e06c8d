"""How prompts do on dev."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy, finite_losses, predicted
from bbt.scoring.scorer import Scorer
from bbt.tasks import Task
from bbt.types import AnyPrompts, Labels, Scores


@dataclass(frozen=True)
class Verdict:
    """How a prompt did on dev: the task's metric, and cross-entropy to break its ties."""

    metric: float
    loss: float

    def facts(self) -> dict[str, float]:
        """Metric and loss as plain numbers."""
        return asdict(self)

    def better_than(self, other: "Verdict", by: str) -> bool:
        """By the metric with ties broken by the loss, or by the loss alone."""
        mine, theirs = (self.metric, -self.loss), (other.metric, -other.loss)
        return mine > theirs if by == "metric" else mine[1] > theirs[1]


def verdicts(task: Task, labels: Labels, scores: Scores) -> list[Verdict]:
    """(n, B, K) -> n verdicts; NaN scores are the worst there is."""
    losses = finite_losses(cross_entropy(scores, labels))
    metrics = [task.metric(labels, row) for row in predicted(np.nan_to_num(scores))]
    broken = ~np.isfinite(losses)
    return [Verdict(0.0 if b else m, float(v)) for m, v, b in zip(metrics, losses, broken, strict=True)]


class Judge:
    """Judges prompts on dev rows."""

    def __init__(self, scorer: Scorer, task: Task, ledger: Ledger) -> None:
        self._scorer, self._task, self._ledger = scorer, task, ledger

    @property
    def n_examples(self) -> int:
        """B, the dev rows."""
        return len(self._scorer.labels)

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """(n, T, H) or (n, T) -> n verdicts. Counts n dev queries."""
        scores = self._scorer.scores(prompts)
        self._ledger.dev_queries += len(prompts)
        return verdicts(self._task, self._scorer.labels, scores)

    def recall(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Told of verdicts that a resumed run has recorded."""
