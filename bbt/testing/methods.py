"""The contract of `bbt.methods.Method`: what a run of it must keep to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bbt.config import Config, make_config


def check_method(config: Config | Mapping[str, Any], runs: Path) -> None:
    """Check that a run of the config's method is deterministic, loads again as it was tested, and is resumed without
    scoring anything once it has finished. The run is made twice, in folders under `runs`, so let it be short.

    Raises:
        AssertionError: it is not; says which.
    """
    from bbt.api import resume, run
    from bbt.build import make_experiment
    from bbt.predictor import Predictor

    config = config if isinstance(config, Config) else make_config(config)
    first, second = (run(config, runs) for _ in range(2))
    assert first.folder is not None
    for key in set(first.result) - {"cost", "peak_memory_mb"}:
        assert first.result[key] == second.result[key], (
            f"two runs of one config and seed differ in {key}: {first.result[key]} and {second.result[key]}."
        )
    examples = first.result["cost"]["examples"]
    assert examples == second.result["cost"]["examples"] > 0, "two runs of one config have scored other rows."
    again = Predictor(first.folder)
    experiment = make_experiment(config, again.backend)
    if experiment.split.test:
        loaded = again.evaluate(experiment.task, experiment.split.test)
        tuned = first.result["test"]["tuned"]
        assert loaded == tuned, f"what was saved scores {loaded}, what was trained {tuned}."
    resumed = resume(first.folder)
    assert resumed.result["test"] == first.result["test"], "a finished run that is resumed has another result."
    assert resumed.result["cost"]["examples"] == examples, "a finished run that is resumed scores rows again."
