"""A config becomes an experiment here: its task, rows, method and log."""

from dataclasses import replace
from typing import Any

from bbt.backend import Backend
from bbt.config import Config
from bbt.errors import ConfigError
from bbt.experiment.experiment import Experiment
from bbt.methods import Method, load_method, methods_for
from bbt.runs.log import EventLog
from bbt.runs.observer import Observer
from bbt.tasks import Split
from bbt.tasks.configured import limited, make_split, make_task, other_tests


def make_experiment(
    config: Config,
    backend: Backend,
    log: EventLog | None = None,
    observer: Observer | None = None,
    split: Split | None = None,
) -> Experiment:
    """Make the config's experiment on a backend. Its rows are those of `split` where that is given, else those that the
    config names.

    Raises:
        ConfigError, DataError: a task or rows that cannot be used, or a ceiling for a method that searches nothing.
    """
    method, model = load_method(config), config.model
    if config.price.ceiling is not None and not method.replays:
        raise ConfigError(f"price.ceiling: {config.method.name} has no search that could stop there.")
    kind = backend.info.kind
    task = method.worded(make_task(config.task, kind))
    if task.scored_by not in method.takes:
        raise ConfigError(
            f"{config.method.name} takes no task that is scored by {task.scored_by.replace('_', ' ')}; these do: "
            f"{', '.join(methods_for(task.scored_by))}."
        )
    split = split or make_split(config.data, task, config.seed)
    calibration = "none" if task.scored_by == "generation" else config.calibration  # a text has no class biases
    return Experiment(
        task,
        replace(split, test=limited(split.test, config.evaluation.rows)),
        backend,
        config.seed,
        log or EventLog(),
        observer or Observer(),
        other_tests(config.evaluation, task, kind, config.data),
        config.evaluation.references,
        config.price,
        calibration,
        {
            "method": config.method.name,
            "settings": _settings(method),
            "label": method.label(config.method.name),
            "backend": model.backend,
            "options": model.options,
            "test_note": config.data.note,
        },
    )


def _settings(method: Method) -> dict[str, Any]:
    """The method's own settings and the sections that it reads in one tree: everything that its numbers depend on."""
    own, sections = method.tree()
    return {**own, **sections}
