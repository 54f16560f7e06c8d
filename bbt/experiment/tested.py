"""A run's outcome is what its method has made, calibrated and tested beside what it started from, with what it cost."""

from collections.abc import Sequence

import numpy as np

from bbt.experiment.answers import Answers
from bbt.experiment.classifiers import Classifier, calibrated
from bbt.experiment.experiment import Experiment, Trained, content_free_rows
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
    """Test the classifier that was trained, and beside it what the method started from: the manual prompt as it is and
    with class biases, and the untuned prompt with class biases.

    Raises:
        BackendError: nothing that was tried had a finite loss.
    """
    check_finite(experiment, trained)
    if experiment.generates:
        return tested_texts(experiment, trained)
    e, classifier = experiment, labelling(trained.classifier)
    costs, beside, others, own = e.ledger.snapshot(), Ledger(), Ledger(), Ledger()
    test: dict[str, dict[str, float]] = {}
    for name, reference in (trained.references if e.references else {}).items():
        test.update(_reference(e, name, labelling(reference), trained.biases.get(name), beside))
    scores = _test_scores(e, classifier, own)
    biases = _biases(e, classifier, scores, trained.verdict.biases, own)
    judged = with_biases(scores, biases)
    test["tuned"] = _metrics(e.task, e.split.test, judged)
    outcome = calibrated(classifier, biases)
    also_test = {
        task.name: {**_metrics(task, rows, outcome.scores(rows, others)), "examples": len(rows)}
        for task, rows in e.other_tests
    }
    figures = {"test": test, "also_test": also_test, "test_truncated": own.truncated + others.truncated}
    answers = Answers.of(judged).beside(e.split.test, e.task.label_names)
    return Tested(outcome, result_of(e, trained, costs, (own, beside, others), figures), answers)


def _reference(
    e: Experiment, name: str, classifier: Classifier, known: tuple[float, ...] | None, ledger: Ledger
) -> dict[str, dict[str, float]]:
    """Compute the metrics of a reference by name: with its class biases, and for the manual prompt without them
    too."""
    scores = _test_scores(e, classifier, ledger)
    plain = {name: _metrics(e.task, e.split.test, scores)}
    if e.calibration == "none":
        return plain
    biases = _biases(e, classifier, scores, known, ledger)
    found = _metrics(e.task, e.split.test, with_biases(scores, biases))
    return {**plain, f"{name} calibrated": found} if name == "manual" else {name: found}


def _test_scores(e: Experiment, classifier: Classifier, ledger: Ledger) -> RowScores:
    """Compute the scores (B, K) on the test rows, of which there may be none."""
    if not e.split.test:
        return np.zeros((0, len(e.task.label_words)), np.float32)
    return classifier.scores(e.split.test, ledger)


def _biases(
    e: Experiment, classifier: Classifier, test: RowScores, known: tuple[float, ...] | None, ledger: Ledger
) -> tuple[float, ...] | None:
    """Find the class biases (K,) of a classifier with scores `test` (B, K) on the test rows. Those that are `known` are
    taken; else they are found on train and dev rows. Batch calibration takes the scores of the test rows, without their
    labels, where there are any."""
    batch = e.calibration == "batch" and len(test) > 0
    if e.calibration == "none" or (known is not None and not batch):
        return known
    rows = [*e.split.train, *e.split.dev]
    scores = test[None] if batch else classifier.scores(rows, ledger)[None]
    free = lambda: classifier.scores(content_free_rows(), ledger)[None]  # noqa: E731
    return tuple(class_biases(e.calibration, scores, labels_of(rows), free)[0].tolist())


def _metrics(task: Task, rows: Sequence[Example], scores: RowScores) -> dict[str, float]:
    """Compute the task's metrics by name; there are none where nothing is to be tested."""
    return task.evaluate(labels_of(rows), predicted(scores)) if rows else {}
