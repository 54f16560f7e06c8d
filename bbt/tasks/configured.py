"""The task and the rows that settings describe are made here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bbt.draws import stable_uniform
from bbt.errors import ConfigError, unknown
from bbt.names import resolved
from bbt.settings import ColumnsConfig, DataConfig, DecodingConfig, EvaluationConfig, TaskConfig
from bbt.tasks.builtin import TASKS, HubSource, TaskSpec, builtin_task
from bbt.tasks.data import Split, bundled_splits, bundled_test, draw_split
from bbt.tasks.examples import Columns, Example, label_value, read_examples
from bbt.tasks.generation import GENERATION_TASKS, GenerationTask
from bbt.tasks.hub import hub_examples, hub_targets
from bbt.tasks.task import Task
from bbt.tasks.template import Template


def make_task(config: TaskConfig, kind: str) -> Task:
    """Make the task, worded for a `masked` or `causal` LM or an `encoder-decoder`, with the config's own words over the
    built-in ones.

    Raises:
        ConfigError: neither built in nor fully described.
    """
    if config.name in GENERATION_TASKS or (config.template and Template(config.template).takes_target):
        return _generation_task(config, kind)
    if config.decoding != DecodingConfig() or config.scored_by == "generation":
        raise ConfigError(
            f"task {config.name} generates no text: leave out task.decoding and task.scored_by, or give a "
            "task.template with {source} and, last, {target}."
        )
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
            unknown("task", config.name, [*TASKS, *GENERATION_TASKS])
            + " For your own give task.template and task.label_words, or a task.template that ends in {target}."
        )
    template = Template(config.template) if config.template else base.template
    return Task(
        base.name,
        template if config.label_space or kind != "masked" else template.without_label_space(),
        config.label_names or base.label_names,
        config.label_words or base.label_words,
        config.metrics or base.metrics,
        base.loss,
        config.scored_by,
    )


def _generation_task(config: TaskConfig, kind: str) -> GenerationTask:
    """Make a built-in task whose answer is a text, or one of the config's own.

    Raises:
        ConfigError: labels, which it has none of, or a score that is theirs.
    """
    if config.label_words or config.label_names:
        raise ConfigError(
            f"task {config.name} generates text and has no labels: leave label_words and label_names out."
        )
    if config.scored_by not in ("label_words", "generation"):
        raise ConfigError(f"task.scored_by: {config.scored_by} is for labels; task {config.name} generates text.")
    known = GENERATION_TASKS.get(config.name)
    base = known.task(config.name, kind) if known else GenerationTask(config.name, Template(str(config.template)))
    own = config.decoding.model_dump(exclude_none=True)
    return replace(
        base,
        template=Template(config.template) if config.template else base.template,
        metrics=config.metrics or base.metrics,
        decoding=replace(base.decoding, **own),
    )


def worded(config: TaskConfig, label_names: Sequence[str], kind: str, takes_pair: bool) -> TaskConfig:
    """Complete a task's settings with all that `make_task` needs for a kind of model. A task that is neither built in
    nor a `module:SPEC` takes, where nothing is given, the paper's template for DBPedia (or for pairs) and the label
    names as label words."""
    if config.name in TASKS or ":" in config.name:
        return config
    asks_like = TASKS["mrpc" if takes_pair else "dbpedia"]
    template = (asks_like.masked if kind == "masked" else asks_like.causal).template
    given = {"template": config.template or template, "label_words": config.label_words or tuple(label_names)}
    return config.model_copy(update={**given, "label_names": tuple(label_names)})


def known_label_names(config: TaskConfig) -> tuple[str, ...] | None:
    """Look up what the labels are called, as far as the config or the built-in task says; None where neither does."""
    if config.label_names or config.label_words:
        return config.label_names or config.label_words
    if config.name in TASKS:
        return TASKS[config.name].label_names
    return _own_spec(config.name).label_names if ":" in config.name else None


def _own_spec(name: str) -> TaskSpec:
    """Load a task of the user's own, `module:SPEC`.

    Raises:
        ConfigError: there is no such thing, or it is no `TaskSpec`.
    """
    spec = resolved("task", name, {})
    if not isinstance(spec, TaskSpec):
        raise ConfigError(f"task {name!r} is a {type(spec).__name__}, expected a bbt.tasks.TaskSpec.")
    return spec


def make_split(config: DataConfig, task: Task, seed: int) -> Split:
    """Make the k-shot split with the test rows; where there are folds, the one that the config names.

    Raises:
        DataError: rows that do not fit; ConfigError: files or a data set that are not named.
    """
    split = _k_shot_split(config, task, seed)
    if config.clean and task.name in TASKS:
        split = _cleaned(split, TASKS[task.name].clean)
    return split if config.folds is None else _fold(split, config.folds, config.fold, max(1, len(task.label_names)))


def _k_shot_split(config: DataConfig, task: Task, seed: int) -> Split:
    seed = seed if config.seed is None else config.seed
    if config.source == "bundled":
        given = [f"data.{key}" for key in ("train", "dev", "test", "path") if getattr(config, key)]
        if given:
            raise ConfigError(f"{' and '.join(given)} is not read with data.source: bundled; set files or huggingface.")
        return bundled_splits(task.name, config.k, seed, task.label_names)
    train, dev, test = (_rows(config, task, part) for part in ("train", "dev", "test"))
    return draw_split(train or [], dev, test or [], config.k, seed, task.label_names or ("target",))


def own_test(config: DataConfig, task: Task, path: Path | str | None) -> list[Example]:
    """Read the test rows that a config's data name, or those of another file of the same make.

    Raises:
        DataError: rows that do not fit; ConfigError: a file or data set that is not named.
    """
    if path is not None:
        return read_examples(path, columns_of(config, task), _labels(config, task), config.header)
    if config.source == "bundled":
        return bundled_test(task.name)
    return _rows(config, task, "test") or []


def columns_of(config: DataConfig, task: Task) -> Columns:
    """Find the columns that the user names, or those of the task's own data set on the hub; the others have our names.

    Raises:
        ConfigError: columns that are for tasks of the other kind.
    """
    if isinstance(task, GenerationTask):
        return _generation_columns(task, config.columns or ColumnsConfig())
    named = config.columns.model_dump(exclude_none=True) if config.columns else {}
    for_text = [f"data.columns.{key}" for key in ("source", "source_pair", "target") if key in named]
    if for_text:
        raise ConfigError(f"{' and '.join(for_text)}: {task.name} has labels and no target; name text and label.")
    hub = _hub(config, task)
    return hub.columns if hub and not named else _columns(task, named)


def _generation_columns(task: GenerationTask, named: ColumnsConfig) -> Columns:
    """Find the columns of a task whose answer is a text: those that the user names, and for the others those of the
    task's own data, or ours.

    Raises:
        ConfigError: columns that are for tasks with labels.
    """
    of_labels, defaults = ("text", "text_pair", "label"), ColumnsConfig()
    wrong = [f"data.columns.{key}" for key in of_labels if getattr(named, key) != getattr(defaults, key)]
    if wrong:
        raise ConfigError(f"{' and '.join(wrong)}: {task.name} has a target and no label; name source and target.")
    pair = "source_pair" if task.template.takes_pair else None
    known = GENERATION_TASKS.get(task.name)
    own = known.columns if known else Columns("source", pair, target="target")
    text, text_pair = named.source or own.text, named.source_pair or own.text_pair
    return Columns(text, text_pair if task.template.takes_pair else None, target=named.target or own.target)


def _rows(config: DataConfig, task: Task, part: str) -> list[Example] | None:
    """Read the rows of `train`, `dev` or `test`; None where the config names no dev rows of its own.

    Raises:
        ConfigError: a file or data set that is not named.
    """
    columns = columns_of(config, task)
    if config.source == "memory":
        raise ConfigError("data.source: memory: the rows were handed over in Python and are not kept; name a file.")
    if config.source == "files":
        if not (config.train and config.test):
            raise ConfigError("data.source: files needs data.train and data.test.")
        path = getattr(config, part)
        return read_examples(path, columns, _labels(config, task), config.header) if path else None
    if isinstance(task, GenerationTask):
        return _hub_targets(config, task, part, columns)
    hub = _hub(config, task)
    if not (config.path or hub):
        raise ConfigError(f"{task.name} has no data set on the hub that is known here: give data.path, or files.")
    path, subset = (hub.path, hub.subset) if hub else (str(config.path), config.subset)
    splits = config.splits or (hub.splits if hub else ("train", "test"))
    named = dict(zip(("train", "test") if len(splits) == 2 else ("train", "dev", "test"), splits, strict=True))
    if part not in named:
        return None
    labels = _labels(config, task) if config.labels else None
    return hub_examples(path, subset, named[part], columns, task.label_names, labels, hub.labels if hub else None)


def _hub_targets(config: DataConfig, task: GenerationTask, part: str, columns: Columns) -> list[Example] | None:
    """Read the rows of a part of a hub data set with targets; None where there is no such part.

    Raises:
        ConfigError: a data set that is not named.
    """
    known = GENERATION_TASKS.get(task.name) if not config.path else None
    if not (config.path or known):
        raise ConfigError(f"{task.name} has no data set on the hub that is known here: give data.path, or files.")
    path, subset = (known.path, known.subset) if known else (str(config.path), config.subset)
    splits = config.splits or (known.splits if known else ("train", "test"))
    named = dict(zip(("train", "test") if len(splits) == 2 else ("train", "dev", "test"), splits, strict=True))
    return hub_targets(path, subset, named[part], columns) if part in named else None


def _hub(config: DataConfig, task: Task) -> HubSource | None:
    """Look up where a built-in task's own data set stands on the hub; None where the rows come from elsewhere."""
    known = TASKS.get(task.name) if config.source == "huggingface" and not config.path else None
    return known.hub if known else None


def _labels(config: DataConfig, task: Task) -> tuple[str, ...]:
    """Find the label column's values in label order: those that the user says, or 0 to K - 1; there are none where text
    is generated.

    Raises:
        ConfigError: another number of values than labels, or one that repeats.
    """
    if isinstance(task, GenerationTask):
        return ()
    labels = config.labels or _label_values(task)
    if len(labels) != len(task.label_names):
        raise ConfigError(
            f"data.labels has {len(labels)} values {list(labels)} for {len(task.label_names)} labels "
            f"{list(task.label_names)}; give one value a label, in order."
        )
    if len(set(map(label_value, labels))) != len(labels):
        raise ConfigError(f"data.labels repeats a value: {list(labels)}.")
    return labels


def _cleaned(split: Split, clean: Callable[[str], str] | None) -> Split:
    """Clean the texts of all rows, where the task has something to clean."""
    if clean is None:
        return split
    parts = [[replace(e, text=clean(e.text)) for e in part] for part in (split.train, split.dev, split.test)]
    return Split(*parts)


def _fold(split: Split, folds: int, fold: int, n_labels: int) -> Split:
    """Pool train and dev rows and cut them anew: of each class every `folds`-th row from `fold` on is dev, the others
    are train.

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
    """Make what puts another built-in task's test rows to a classifier of this task: a task with this one's template
    and label words and the other's metrics, and the rows.

    Raises:
        ConfigError: the other task has other labels.
    """
    other = builtin_task(name, kind)
    if len(other.label_names) != len(task.label_names):
        raise ConfigError(
            f"{task.name} cannot be tested on {name}: its labels are {', '.join(task.label_names)}, there they are "
            f"{', '.join(other.label_names)}."
        )
    asked = replace(task, name=name, metrics=other.metrics)
    return asked, test_examples(other, path)


def test_examples(task: Task, path: Path | str | None) -> list[Example]:
    """Read a built-in task's test rows: the bundled ones, or a file of the user's with columns named text and label."""
    if path is None:
        return bundled_test(task.name)
    return read_examples(path, _columns(task, {}), _label_values(task))


def _columns(task: Task, named: dict[str, str]) -> Columns:
    """Return the columns that the user names, and our names for the others."""
    defaults = Columns(text_pair="text_pair" if task.template.takes_pair else None)
    return replace(defaults, **named)


def _label_values(task: Task) -> tuple[str, ...]:
    """Return what the label column holds unless the user says otherwise: 0 to K - 1."""
    return tuple(str(i) for i in range(len(task.label_names)))


def other_tests(config: EvaluationConfig, task: Task, kind: str, data: DataConfig) -> list[tuple[Task, list[Example]]]:
    """Make the `also_test` of a config: each task, asked in this one's words, and its rows. Where the answer is a text
    the rows are read as `data` says, or as those of the built-in task of that name.

    Raises:
        ConfigError: other labels there, or no file where the answer is a text.
    """
    tests = [
        _other_targets(name, path, task, data)
        if isinstance(task, GenerationTask)
        else other_test(name, Path(path) if path else None, task, kind)
        for name, path in config.also_test.items()
    ]
    return [(other, limited(rows, config.rows)) for other, rows in tests]


def _other_targets(name: str, path: str | None, task: GenerationTask, data: DataConfig) -> tuple[Task, list[Example]]:
    """Make what puts the rows of a file to a generator of this task, with this task's metrics.

    Raises:
        ConfigError: there is no file.
    """
    if path is None:
        raise ConfigError(f"evaluation.also_test.{name}: {task.name} generates text; name a file of rows with targets.")
    known = GENERATION_TASKS.get(name)
    columns = known.columns if known else columns_of(data, task)
    if not task.template.takes_pair:
        columns = replace(columns, text_pair=None)
    return replace(task, name=name), read_examples(path, columns, (), data.header)


def limited(examples: Sequence[Example], rows: int | None) -> list[Example]:
    """Draw so many test rows, the same ones for every run, and keep their order; None keeps them all."""
    if rows is None or rows >= len(examples):
        return list(examples)
    chosen = np.sort(stable_uniform(0, len(examples)).argsort(kind="stable")[:rows])
    return [examples[i] for i in chosen]
