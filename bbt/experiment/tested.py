"""How what a method has made tests, calibrated, beside what it started from."""

from collections.abc import Sequence

import numpy as np

from bbt.experiment.classifiers import Classifier, calibrated
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import labelling
from bbt.experiment.outcome import Tested, check_finite, result_of
from bbt.experiment.tested_texts import tested_texts
from bbt.scoring.calibration import class_biases, with_biases
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import predicted
from bbt.tasks import Example, Task
from bbt.tasks.task import labels_of
from bbt.types import RowScores


def tested(experiment: Experiment, trained: Trained) -> Tested:
    """Test what was trained, and beside it what it started from: the manual prompt as it is and with class biases, the
    untuned prompt with class biases.

    Raises:
        BackendError: nothing that was tried had a finite loss.
    """
    check_finite(experiment, trained)
    if experiment.generates:
        return tested_texts(experiment, trained)
    e = experiment
    costs = e.ledger.snapshot()
    ledgers = {name: Ledger() for name in (*(trained.references if e.references else ()), "tuned")}
    test: dict[str, dict[str, float]] = {}
    for name, reference in (trained.references if e.references else {}).items():
        classifier = labelling(reference)
        scores = _test_scores(e, classifier, ledgers[name])
        biases = trained.biases.get(name) or _biases(e, classifier, scores, ledgers[name])
        if name == "manual":
            test[name] = _metrics(e.task, e.split.test, scores)
        if e.calibration != "none":
            test[f"{name} calibrated" if name == "manual" else name] = _calibrated(e, scores, biases)
        elif name != "manual":
            test[name] = _metrics(e.task, e.split.test, scores)
    classifier = labelling(trained.classifier)
    scores = _test_scores(e, classifier, ledgers["tuned"])
    biases = trained.verdict.biases
    if e.calibration == "batch" and e.split.test:
        biases = _biases(e, classifier, scores, ledgers["tuned"])
    test["tuned"] = _calibrated(e, scores, biases)
    outcome = calibrated(classifier, biases)
    elsewhere = Ledger()
    also_test = {
        task.name: {**_metrics(task, rows, outcome.scores(rows, elsewhere)), "examples": len(rows)}
        for task, rows in e.other_tests
    }
    tests = (*ledgers.values(), elsewhere)
    cut = ledgers["tuned"].truncated
    return Tested(outcome, result_of(e, trained, costs, tests, cut, test=test, also_test=also_test))


def _test_scores(e: Experiment, classifier: Classifier, ledger: Ledger) -> RowScores:
    """(B, K) on the test rows, of which there may be none."""
    if not e.split.test:
        return np.zeros((0, len(e.task.label_words)), np.float32)
    return classifier.scores(e.split.test, ledger)


def _biases(e: Experiment, classifier: Classifier, test: RowScores, ledger: Ledger) -> tuple[float, ...] | None:
    """Class biases of a classifier: fitted on train and dev rows, or of the test rows without their labels, or of rows
    that say nothing."""
    if e.calibration == "none":
        return None
    rows = [*e.split.train, *e.split.dev]
    labels, scores = labels_of(rows), test[None]
    if e.calibration == "fitted" or not len(test):
        scores = classifier.scores(rows, ledger)[None]
    free = lambda: classifier.scores(e.content_free_rows, ledger)[None]  # noqa: E731
    return tuple(class_biases(e.calibration, scores, labels, free)[0].tolist())


def _calibrated(e: Experiment, scores: RowScores, biases: tuple[float, ...] | None) -> dict[str, float]:
    return _metrics(e.task, e.split.test, with_biases(scores, biases))


def _metrics(task: Task, rows: Sequence[Example], scores: RowScores) -> dict[str, float]:
    """The task's metrics; none where nothing is to be tested."""
    return task.evaluate(labels_of(rows), predicted(scores)) if rows else {}
