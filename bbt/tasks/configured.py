"""The task and the rows that settings describe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bbt.draws import stable_uniform
from bbt.errors import ConfigError, unknown
from bbt.names import resolved
from bbt.settings import DataConfig, EvaluationConfig, TaskConfig
from bbt.tasks.builtin import TASKS, TaskSpec, builtin_task, task_spec
from bbt.tasks.data import (
    Columns,
    Example,
    Split,
    bundled_splits,
    bundled_test,
    huggingface_splits,
    load_splits,
    read_examples,
)
from bbt.tasks.task import Task
from bbt.tasks.template import Template


def make_task(config: TaskConfig, kind: str) -> Task:
    """The task worded for a `masked` or `causal` LM, with the config's own words over the built-in ones.

    Raises:
        ConfigError: neither built in nor fully described.
    """
    if config.name in TASKS:
        base = builtin_task(config.name, kind)
    elif config.template and config.label_words:
        base = Task(
            config.name,
            Template(config.template),
            config.label_names or config.label_words,
            config.label_words,
        )
    elif ":" in config.name:
        base = _own_spec(config.name).task(config.name.replace(":", "-"), kind)
    else:
        raise ConfigError(
            unknown("task", config.name, TASKS) + " For your own give task.template and task.label_words."
        )
    return Task(
        base.name,
        Template(config.template) if config.template else base.template,
        config.label_names or base.label_names,
        config.label_words or base.label_words,
        config.metrics or base.metrics,
        base.loss,
    )


def _own_spec(name: str) -> TaskSpec:
    """A task of the user's own, `module:SPEC`."""
    spec = resolved("task", name, {})
    if not isinstance(spec, TaskSpec):
        raise ConfigError(f"task {name!r} is a {type(spec).__name__}, expected a bbt.tasks.TaskSpec.")
    return spec


def make_split(config: DataConfig, task: Task, seed: int) -> Split:
    """The k-shot split and the test rows; of folds, the config's one.

    Raises:
        DataError: rows that do not fit; ConfigError: files or a data set that are not named.
    """
    split = _k_shot_split(config, task, seed)
    return split if config.folds is None else _fold(split, config.folds, config.fold, len(task.label_names))


def _k_shot_split(config: DataConfig, task: Task, seed: int) -> Split:
    seed = seed if config.seed is None else config.seed
    labels = config.labels or _label_values(task)
    if len(labels) != len(task.label_names):
        raise ConfigError(
            f"data.labels has {len(labels)} values {list(labels)} for {len(task.label_names)} labels "
            f"{list(task.label_names)}; give one value a label, in order."
        )
    columns = _columns(task, config.columns.model_dump(exclude_none=True) if config.columns else {})
    if config.source == "bundled":
        return bundled_splits(task.name, config.k, seed, task.label_names)
    if config.source == "files":
        if not (config.train and config.test):
            raise ConfigError("data.source: files needs data.train and data.test.")
        return load_splits(Path(config.train), Path(config.test), config.k, seed, columns, task.label_names, labels)
    hub = task_spec(task.name).hub if not config.path else None
    if not (config.path or hub):
        raise ConfigError(f"{task.name} has no data set on the hub that is known here: give data.path, or files.")
    path, subset = (hub.path, hub.subset) if hub else (str(config.path), config.subset)
    splits = config.splits or (hub.splits if hub else ("train", "test"))
    columns = hub.columns if hub and not config.columns else columns
    return huggingface_splits(path, subset, splits, config.k, seed, columns, task.label_names, labels)


def _fold(split: Split, folds: int, fold: int, n_labels: int) -> Split:
    """Train and dev rows pooled; of each class every `folds`-th row from `fold` on is dev, the others train.

    Raises:
        ConfigError: no such fold, or a class without a row in each.
    """
    pool = [*split.train, *split.dev]
    of_class = [[example for example in pool if example.label == label] for label in range(n_labels)]
    if fold >= folds or folds > min(map(len, of_class)):
        raise ConfigError(
            f"data.fold is {fold} of data.folds {folds}: folds count from 0, and each class has "
            f"{min(map(len, of_class))} rows to share out."
        )
    dev = [example for rows in of_class for example in rows[fold::folds]]
    train = [example for rows in of_class for i, example in enumerate(rows) if i % folds != fold]
    return Split(train, dev, split.test)


def other_test(name: str, path: Path | None, task: Task, kind: str) -> tuple[Task, list[Example]]:
    """Another built-in task's test rows, to be put to a classifier of this task: its own template and label words,
    the other's metrics.

    Raises:
        ConfigError: the other task has other labels.
    """
    other = builtin_task(name, kind)
    if len(other.label_names) != len(task.label_names):
        raise ConfigError(
            f"{task.name} cannot be tested on {name}: its labels are {', '.join(task.label_names)}, there they are "
            f"{', '.join(other.label_names)}."
        )
    asked = Task(name, task.template, task.label_names, task.label_words, other.metrics)
    return asked, test_examples(other, path)


def test_examples(task: Task, path: Path | None) -> list[Example]:
    """A built-in task's test rows: bundled, or a file of the user's with its columns named text and label."""
    if path is None:
        return bundled_test(task.name)
    return read_examples(path, _columns(task, {}), _label_values(task))


def _columns(task: Task, named: dict[str, str]) -> Columns:
    """The columns that the user names, and our names for the others."""
    defaults = Columns(text_pair="text_pair" if task.template.takes_pair else None)
    return replace(defaults, **named)


def _label_values(task: Task) -> tuple[str, ...]:
    """What the label column holds unless the user says otherwise: 0 to K - 1."""
    return tuple(str(i) for i in range(len(task.label_names)))


def other_tests(config: EvaluationConfig, task: Task, kind: str) -> list[tuple[Task, list[Example]]]:
    """The `also_test` of a config: each task, asked in this one's words, and its rows."""
    tests = [other_test(name, Path(path) if path else None, task, kind) for name, path in config.also_test.items()]
    return [(other, limited(rows, config.rows)) for other, rows in tests]


def limited(examples: Sequence[Example], rows: int | None) -> list[Example]:
    """The same draw of test rows for every run, in their order."""
    if rows is None or rows >= len(examples):
        return list(examples)
    chosen = np.sort(stable_uniform(0, len(examples)).argsort(kind="stable")[:rows])
    return [examples[i] for i in chosen]
