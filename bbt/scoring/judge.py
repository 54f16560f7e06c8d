"""Dev rows judge prompts here: each prompt gets a verdict, by which the search keeps the best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from bbt.runs.log import decode_losses, encode_losses
from bbt.scoring.calibration import class_biases, held_out
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import finite_losses, gold, log_softmax, predicted
from bbt.scoring.scorer import Scorer
from bbt.settings import CalibrationKind
from bbt.spaces.soft import Space
from bbt.tasks import Task
from bbt.types import AnyPrompts, Event, Labels, Latents, Scores


@dataclass(frozen=True)
class Verdict:
    """A verdict on a prompt: how it did on the dev rows."""

    metric: float
    """The task's first metric on the dev rows, in [0, 1]."""
    loss: float
    """The cross-entropy in nats, a mean over the dev rows; +inf where a score was not a number."""
    biases: tuple[float, ...] | None = None
    """(K,) class biases of the prompt, found on train and dev rows together (none: no calibration)."""
    row_losses: tuple[float, ...] = ()
    """(Bd,) cross-entropy of each dev row in nats, its class biases found on the other rows."""

    def facts(self) -> Event:
        """The metric and the loss as plain numbers."""
        return {"metric": self.metric, "loss": self.loss}

    def better_than(self, other: "Verdict", by: str) -> bool:
        """Whether this verdict is the better one: by the metric with ties broken by the loss, or by the loss alone."""
        mine, theirs = (self.metric, -self.loss), (other.metric, -other.loss)
        return mine > theirs if by == "metric" else mine[1] > theirs[1]

    def clearly_better_than(self, other: "Verdict", by: str, margin: float, n_rows: int) -> bool:
        """Whether this verdict is better by more than `margin` standard errors of the difference."""
        lead, error = self.lead(other, by, n_rows)
        return lead > margin * error

    def lead(self, other: "Verdict", by: str, n_rows: int) -> tuple[float, float]:
        """How far this verdict is ahead of the other, and the standard error of that. The difference of losses is taken
        row by row, since both prompts were judged on the same rows. By the metric, the standard error is that of the
        other's metric, taken as a share of the `n_rows` dev rows (Breiman et al. 1984, section 3.4.3)."""
        if by == "metric" or not (self.row_losses and other.row_losses):
            return self.metric - other.metric, float(np.sqrt(other.metric * (1.0 - other.metric) / n_rows))
        gains = np.array(other.row_losses) - np.array(self.row_losses)
        return float(gains.mean()), float(gains.std(ddof=min(1, len(gains) - 1)) / np.sqrt(len(gains)))


def verdicts(
    task: Task,
    labels: Labels,
    scores: Scores,
    calibration: CalibrationKind = "none",
    train: tuple[Scores, Labels] | None = None,
    content_free: Callable[[], Scores] | None = None,
) -> list[Verdict]:
    """Give the verdicts on n prompts with dev scores (n, Bd, K); NaN scores get the worst verdict there is. A fitted
    `calibration` needs the scores of the `train` rows too, a content-free one those of rows that say nothing."""
    content_free = content_free and cache(content_free)  # asked for twice, scored once
    seen, seen_labels = (scores, labels) if train is None else _together(train, (scores, labels))
    judged: Scores = scores
    biases: list[tuple[float, ...] | None] = [None] * len(scores)
    if calibration != "none":
        before = train or (scores[:, :0], labels[:0])
        judged = held_out(calibration, *before, scores, labels, content_free)
        biases = [tuple(row) for row in class_biases(calibration, seen, seen_labels, content_free).tolist()]
    rows = -gold(log_softmax(judged), labels)
    losses = finite_losses(rows.mean(axis=-1))
    metrics = [task.metric(labels, row) for row in predicted(np.nan_to_num(judged))]
    return [
        Verdict(metric, float(loss), bias, tuple(row)) if np.isfinite(loss) else Verdict(0.0, float(loss))
        for metric, loss, bias, row in zip(metrics, losses, biases, rows.tolist(), strict=True)
    ]


class DevJudge(Protocol):
    """What chooses among the candidates of a search."""

    @property
    def n_examples(self) -> int:
        """The number of dev rows Bd."""

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """Give the n verdicts on soft prompts (n, T, H) or hard prompts (n, T). It counts n dev queries."""

    def latent_verdicts(self, latents: Latents, space: Space) -> list[Verdict]:
        """Give the n verdicts on the prompts that latents (n, d) stand for in a space; see `verdicts`."""

    def recall(self, latents: Latents, space: Space, verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on latents (n, d) that a resumed run has recorded."""

    def remember(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on prompts, each a population of one, that a resumed run has recorded."""


class Judge:
    """A judge of prompts on dev rows. With a fitted calibration the train rows are scored as well, which is a part of
    the dev query."""

    def __init__(
        self,
        scorer: Scorer,
        task: Task,
        ledger: Ledger,
        calibration: CalibrationKind = "none",
        train: Scorer | None = None,
        content_free: Scorer | None = None,
    ) -> None:
        self._scorer, self._task, self._ledger = scorer, task, ledger
        self._calibration, self._train, self._content_free = calibration, train, content_free

    @property
    def n_examples(self) -> int:
        """The number of dev rows Bd."""
        return len(self._scorer.labels)

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """Give the verdicts on n soft prompts (n, T, H) or hard prompts (n, T). It counts n dev queries."""
        return self._judged(lambda scorer: scorer.scores(prompts))

    def latent_verdicts(self, latents: Latents, space: Space) -> list[Verdict]:
        """Give the n verdicts on the prompts that latents (n, d) stand for in a space; see `verdicts`."""
        return self._judged(lambda scorer: scorer.latent_scores(latents, space))

    def recall(self, latents: Latents, space: Space, verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on latents that a resumed run has recorded; this judge needs none of them."""

    def remember(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Take note of verdicts on prompts that a resumed run has recorded; this judge needs none of them."""

    def _judged(self, scores_by: Callable[[Scorer], Scores]) -> list[Verdict]:
        train, free, kind = self._train, self._content_free, self._calibration
        scores = scores_by(self._scorer)
        before = (scores_by(train), train.labels) if train and kind == "fitted" else None
        self._ledger.dev_queries += len(scores)
        content_free = (lambda: scores_by(free)) if free else None
        return verdicts(self._task, self._scorer.labels, scores, kind, before, content_free)


def _together(train: tuple[Scores, Labels], dev: tuple[Scores, Labels]) -> tuple[Scores, Labels]:
    """Join the scores and labels of both splits, train before dev."""
    return np.concatenate([train[0], dev[0]], axis=1), np.concatenate([train[1], dev[1]])


def verdict_facts(verdicts: Sequence[Verdict]) -> Event:
    """Write the verdicts as the plain values that a log holds."""
    facts = {
        "metrics": [verdict.metric for verdict in verdicts],
        "losses": encode_losses(np.array([verdict.loss for verdict in verdicts])),
    }
    if any(verdict.biases for verdict in verdicts):
        facts["biases"] = [verdict.biases for verdict in verdicts]
    return {**facts, "row_losses": [verdict.row_losses for verdict in verdicts]}


def recorded_verdicts(event: Event) -> list[Verdict]:
    """Read the verdicts of which `verdict_facts` made an event; version 0.1 recorded neither biases nor rows."""
    n = len(event["metrics"])
    biases = [row and tuple(row) for row in event.get("biases", [None] * n)]
    rows = [tuple(row) for row in event.get("row_losses", [()] * n)]
    return list(map(Verdict, event["metrics"], decode_losses(event["losses"]).tolist(), biases, rows))
