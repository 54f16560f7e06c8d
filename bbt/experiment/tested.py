"""A run's outcome is what its method has made, calibrated and tested beside what it started from, with what it cost."""

import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bbt.backend import Backend, DeviceBackend
from bbt.errors import BackendError
from bbt.experiment.classifiers import Classifier, calibrated
from bbt.experiment.experiment import Experiment, Trained, content_free_rows
from bbt.scoring.calibration import class_biases, with_biases
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import predicted
from bbt.tasks import Example, Task
from bbt.tasks.task import labels_of
from bbt.types import RowScores


@dataclass(frozen=True)
class Tested:
    """What a run has come to."""

    classifier: Classifier
    """The classifier that was trained, with its class biases."""
    result: dict[str, Any]
    """What `result.json` holds."""


def tested(experiment: Experiment, trained: Trained) -> Tested:
    """Test the classifier that was trained, and beside it what the method started from: the manual prompt as it is and
    with class biases, and the untuned prompt with class biases.

    Raises:
        BackendError: nothing that was tried had a finite loss.
    """
    e = experiment
    if not math.isfinite(trained.verdict.loss):
        raise BackendError(
            f"every prompt's scores were NaN or infinite in {e.backend.info.precision}: is the model damaged, "
            "or the precision too low for it? Try model.options.precision=fp32."
        )
    costs, beside, own = e.ledger.snapshot(), Ledger(), Ledger()
    test: dict[str, dict[str, float]] = {}
    for name, classifier in (trained.references if e.references else {}).items():
        test.update(_reference(e, name, classifier, trained.biases.get(name), beside))
    scores = _test_scores(e, trained.classifier, own)
    biases = _biases(e, trained.classifier, scores, trained.verdict.biases, own)
    test["tuned"] = _metrics(e.task, e.split.test, with_biases(scores, biases))
    outcome = calibrated(trained.classifier, biases)
    also_test = {
        task.name: {**_metrics(task, rows, outcome.scores(rows, beside)), "examples": len(rows)}
        for task, rows in e.other_tests
    }
    facts = {"test": test, "also_test": also_test, "test_truncated": own.truncated}
    price = {"search": _price(e, e.ledger), "test": _price(e, own) + _price(e, beside)}
    return Tested(outcome, {**_about(e, trained), **facts, "cost": costs, "price": price, **_peak_memory(e.backend)})


def _about(e: Experiment, trained: Trained) -> dict[str, Any]:
    """The part of the result that says what was run, and which state was chosen."""
    info = e.backend.info
    return {
        "task": e.task.name,
        "model": info.name,
        "fingerprint": info.fingerprint,
        "device": info.device,
        "precision": info.precision,
        "method": e.facts.get("method"),
        "label": e.facts.get("label", e.facts.get("method", "")),
        "seed": e.seed,
        "calibration": e.calibration,
        "test_examples": len(e.split.test),
        "test_note": e.facts.get("test_note"),
        "selected": {"who": trained.who, **trained.verdict.facts(), "train_queries": trained.train_queries},
        "prompt_text": trained.prompt_text,
        "n_parameters": trained.n_parameters,
    }


def _reference(
    e: Experiment, name: str, classifier: Classifier, known: tuple[float, ...] | None, ledger: Ledger
) -> dict[str, dict[str, float]]:
    """The metrics of a reference by name: with its class biases, and for the manual prompt without them too."""
    scores = _test_scores(e, classifier, ledger)
    plain = {name: _metrics(e.task, e.split.test, scores)}
    if e.calibration == "none":
        return plain
    biases = _biases(e, classifier, scores, known, ledger)
    found = _metrics(e.task, e.split.test, with_biases(scores, biases))
    return {**plain, f"{name} calibrated": found} if name == "manual" else {name: found}


def _test_scores(e: Experiment, classifier: Classifier, ledger: Ledger) -> RowScores:
    """The scores (B, K) on the test rows, of which there may be none."""
    if not e.split.test:
        return np.zeros((0, len(e.task.label_words)), np.float32)
    return classifier.scores(e.split.test, ledger)


def _biases(
    e: Experiment, classifier: Classifier, test: RowScores, known: tuple[float, ...] | None, ledger: Ledger
) -> tuple[float, ...] | None:
    """The class biases (K,) of a classifier with scores `test` (B, K) on the test rows. Those that are `known` are
    taken; else they are fitted on train and dev rows. Batch calibration uses the test rows', without their labels,
    where there are any."""
    if e.calibration == "none" or (known is not None and not (e.calibration == "batch" and len(test))):
        return known
    rows = [*e.split.train, *e.split.dev]
    batch = e.calibration == "batch" and len(test)
    scores = test[None] if batch else classifier.scores(rows, ledger)[None]
    free = lambda: classifier.scores(content_free_rows(), ledger)[None]  # noqa: E731
    return tuple(class_biases(e.calibration, scores, labels_of(rows), free)[0].tolist())


def _metrics(task: Task, rows: Sequence[Example], scores: RowScores) -> dict[str, float]:
    """The task's metrics by name; none where nothing is to be tested."""
    return task.evaluate(labels_of(rows), predicted(scores)) if rows else {}


def _price(e: Experiment, ledger: Ledger) -> float:
    """What the run has cost in money, by the experiment's price."""
    return e.price.of(ledger.tokens_up, ledger.tokens_down)


def _peak_memory(backend: Backend) -> dict[str, Any]:
    """The peak memory in MB and whose it is: the device's where the backend's model has one, else the process's
    resident memory (which Linux counts in KiB, and macOS in bytes)."""
    of_device = backend.peak_memory_mb() if isinstance(backend, DeviceBackend) else None
    if of_device is not None:
        return {"peak_memory_mb": round(of_device, 1), "peak_memory_of": backend.info.device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_mb": round(peak / unit, 1), "peak_memory_of": "process"}
