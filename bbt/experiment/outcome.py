"""A run's outcome is put together here: what its method has made, how that tested, and what it cost."""

import math
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bbt.backend import Backend, DeviceBackend
from bbt.errors import BackendError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.generators import Generator
from bbt.scoring.ledger import Ledger


@dataclass(frozen=True)
class Tested:
    """A run that has been tested: what was trained, and how it did."""

    classifier: Classifier | Generator
    """What was trained, with its class biases."""
    result: dict[str, Any]
    """What `result.json` holds."""
    outputs: Sequence[dict[str, Any]] = ()
    """A record for each test row: its own texts, the gold label and the answer, or the references and the output."""


def check_finite(experiment: Experiment, trained: Trained) -> None:
    """Refuse a training in which every prompt's loss was infinite or not a number.

    Raises:
        BackendError: nothing that was tried had a finite loss.
    """
    if not math.isfinite(trained.verdict.loss):
        raise BackendError(
            f"every prompt's scores were NaN or infinite in {experiment.backend.info.precision}: is the model damaged, "
            "or the precision too low for it? Try model.options.precision=fp32."
        )


def result_of(
    experiment: Experiment,
    trained: Trained,
    costs: dict[str, float],
    tests: Iterable[Ledger],
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Put together what `result.json` holds: what was run and chosen, the test's `figures`, the search's `costs`, the
    price of the search and of the `tests`, and the peak memory."""
    e = experiment
    price = {"search": _price(e, e.ledger), "test": sum(_price(e, one) for one in tests)}
    return {**_about(e, trained), **figures, "cost": costs, "price": price, **_peak_memory(e.backend)}


def _about(e: Experiment, trained: Trained) -> dict[str, Any]:
    """Describe what was run, and what of it was chosen."""
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


def _price(e: Experiment, ledger: Ledger) -> float:
    """Compute the money that the ledger's tokens cost by the experiment's price."""
    return e.price.of(ledger.tokens_up, ledger.tokens_down)


def _peak_memory(backend: Backend) -> dict[str, Any]:
    """Measure the peak memory in MB and say whose it is: the device's where the backend's model lies on one, else the
    resident memory of this process (which Linux counts in KiB and macOS in bytes)."""
    of_device = backend.peak_memory_mb() if isinstance(backend, DeviceBackend) else None
    if of_device is not None:
        return {"peak_memory_mb": round(of_device, 1), "peak_memory_of": backend.info.device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_mb": round(peak / unit, 1), "peak_memory_of": "process"}
