"""The top-level API: the one place, beside the command line, that puts `bbt` and `backends` together."""

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from backends.gauge import open_gauge
from bbt.backend import Backend
from bbt.build import make_experiment
from bbt.config import Config, make_config, merged, read_run_config, read_tree
from bbt.errors import BbtError, ConfigError, LabelWordError, RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, content_free_rows
from bbt.experiment.generators import Generator
from bbt.experiment.outcome import Tested
from bbt.experiment.tested import tested
from bbt.files import write_atomically, write_lines
from bbt.methods import Method, load_method, resolved_tree, to_yaml
from bbt.methods import label as label_of
from bbt.predictor import Predictor, open_backend
from bbt.runs.estimate import Estimate, speed_of_last
from bbt.runs.estimate_labels import estimated
from bbt.runs.estimate_texts import estimated_texts
from bbt.runs.folder import OUTPUTS, RunFolder, read_result, write_result
from bbt.runs.observer import Observer, watching
from bbt.runs.progress import shown_progress
from bbt.runs.report import selected_line
from bbt.settings import ColumnsConfig, DataConfig
from bbt.tasks import TASKS, Columns, GenerationTask, Split
from bbt.tasks.configured import known_label_names, limited, make_split, make_task, other_tests, worded
from bbt.tasks.data import Shots
from bbt.tasks.tables import Table, Tables

LOG = logging.getLogger(__name__)
RUNS = Path("runs")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, as it is handed over in Python."""

    config: Config
    """The run's config."""
    result: dict[str, Any]
    """What `result.json` holds of the run."""
    classifier: Classifier | Generator
    """What was trained, with its class biases."""
    folder: Path | None = None
    """The run's folder (none: it ran in memory)."""

    def save(self, folder: Path | str) -> None:
        """Save what a `Predictor` loads in a folder of its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", to_yaml(self.config))
        _save(self.classifier, folder)
        write_result(folder, self.result)


def tune(
    config: Config | Mapping[str, Any] | Path | str | None = None,
    backend: Backend | None = None,
    observer: Observer | None = None,
    *,
    train: Table | None = None,
    dev: Table | float = 0.5,
    test: Table | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    labels: Sequence[Hashable] | None = None,
    k: Shots = "all",
    task: str | Mapping[str, Any] | None = None,
    model: str | Mapping[str, Any] | None = None,
    method: str | Mapping[str, Any] | None = None,
    budget: int | Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Outcome:
    """Run a config, or the file of one, in memory and without a run folder; or tune on rows that are given here.

    Rows are tables, as `bbt.tasks.tables` reads them: `train`, `dev` (or which share of the train rows dev is, class by
    class) and `test`, with the names of their columns. `labels` are the label column's values in label order, where
    they are not the task's label names or 0 to K - 1; `k` draws so many train rows a class, and as many for dev where
    `dev` is a share. Without a task that is built in or says more, the class names are the label words.

    `task`, `model`, `method`, `budget` and `seed` stand for what a config says under these names: a name, a number of
    queries, or the whole section (a task of your own is a section). `backend` overrides the model; a bar shows the
    `progress` on a terminal.

    Raises:
        ConfigError, DataError: a config or rows that cannot be used; LabelWordError: a label word is not one token.
    """
    config = _configured(config, task=task, model=model, method=method, budget=budget, seed=seed)
    with shown_progress(progress, observer) as watched:
        if train is None:
            about_rows = {"test": test, "text": text, "text_pair": text_pair, "label": label, "labels": labels}
            stray = [name for name, value in about_rows.items() if value is not None]
            if stray or not isinstance(dev, float):
                raise ConfigError(f"{', '.join(stray) or 'dev'} without train: give the train rows, too.")
            return tune_rows(config, None, backend or open_backend(config.model), watched)
        if isinstance(task, str):
            make_task(config.task, "masked")  # a name alone is one of a known task
        train = list(train) if isinstance(train, Iterator) else train  # it is read twice
        tables = Tables(train, dev, test, Columns(text or "text", text_pair, label or "label"), labels)
        return _tune_tables(config, tables, k, backend, watched)


def tune_rows(config: Config, split: Split | None, backend: Backend, observer: Observer | None = None) -> Outcome:
    """Run in memory on the rows of `split`, or on those that the config names."""
    method = load_method(config)
    with _watched(config, observer) as observer:
        experiment = make_experiment(config, backend, observer=observer, split=split)
        done = _trained_and_tested(config, method, experiment)
        observer.finished(done.result)
    return Outcome(config, done.result, done.classifier)


def _tune_tables(
    config: Config, tables: Tables, k: Shots, backend: Backend | None, observer: Observer | None
) -> Outcome:
    """Run the config's method on rows of tables; the outcome's config says how they were read."""
    described = config.task
    if "name" not in described.model_fields_set:
        described = described.model_copy(update={"name": "rows"})
    columns, names = tables.columns, known_label_names(described)
    if described.name in TASKS and TASKS[described.name].takes_pair and columns.text_pair is None:
        columns = replace(columns, text_pair="text_pair")
    tables = replace(tables, columns=columns)
    values, names = tables.label_values(names)
    backend = backend or open_backend(config.model)
    kind, words = backend.info.kind, described.label_words
    described = worded(described, names, kind, columns.text_pair is not None)
    task = make_task(described, kind)
    if task.template.takes_pair != (columns.text_pair is not None):
        needs = (
            "two texts a row: name the second's column, text_pair" if columns.text_pair is None else "one text a row"
        )
        raise ConfigError(f"the template {task.template.source!r} reads {needs}.")
    split = tables.split(values, k, config.seed, task.label_names)
    read = ColumnsConfig(text=columns.text, text_pair=columns.text_pair, label=columns.label)
    data = DataConfig(source="memory", k=k, columns=read, labels=tuple(values))
    config = config.model_copy(update={"task": described, "data": data})
    try:
        return tune_rows(config, split, backend, observer)
    except LabelWordError as error:
        if words or task.label_words != names:
            raise
        raise LabelWordError(f"{error} Unless you give label words, the class names are taken.") from error


def _configured(config: Config | Mapping[str, Any] | Path | str | None, **given: Any) -> Config:
    """Put what is given over a config; a name stands for a section's name, a number for its queries."""
    if isinstance(config, (str, Path)):
        config = read_tree(config)
    sections = {
        key: {"name": value} if isinstance(value, str) else {"queries": value} if isinstance(value, int) else value
        for key, value in given.items()
        if key != "seed" and value is not None
    }
    over = {**sections, **({} if given["seed"] is None else {"seed": given["seed"]})}
    if isinstance(config, Config):
        return make_config(merged(resolved_tree(config), over)) if over else config
    return make_config(merged(config or {}, over))


def run(
    config: Config, runs: Path | str = RUNS, observer: Observer | None = None, backend: Backend | None = None
) -> Outcome:
    """Run in a new run folder under `runs`; whatever stops it, `resume` goes on from there. `backend` is the config's
    model where that is open already.

    A config that cannot be run (a BbtError before the first generation) leaves no folder behind.
    """
    runs = Path(runs)
    text = to_yaml(config)
    backend = backend or open_backend(config.model)
    name = config.name or f"{config.task.name.replace(':', '-')}-{label_of(config)}-seed{config.seed}"
    with RunFolder.create(runs, name, text) as folder:
        try:
            return _in_folder(config, backend, folder, observer)
        except BbtError:
            if not folder.log.of("generation"):
                folder.discard(runs)
            raise


def resume(
    path: Path | str,
    queries: int | None = None,
    observer: Observer | None = None,
    ceiling: float | None = None,
    backend: Backend | None = None,
) -> Outcome:
    """Go on with a run as if it had never stopped; `queries` extends its budget first, `ceiling` its money. `backend`
    is the run's model where that is open already.

    Methods whose log is no checkpoint (trainings) begin again from their seed, unless they have finished.

    Raises:
        RunError: not a run, in use, or a budget or ceiling that is no extension.
    """
    path = Path(path)
    with RunFolder(path) as folder:
        config = read_run_config(path)
        method = load_method(config)
        if method.replays:
            _extend(folder, "queries", method.tree()[1]["budget"]["queries"], queries)
            _extend(folder, "ceiling", config.price.ceiling, ceiling)
        elif queries is not None or ceiling is not None:
            raise RunError(f"{path}: {config.method.name} has no budget to extend.")
        elif folder.log.of("result"):
            return Outcome(config, read_result(folder), Predictor(path).classifier, path)
        return _in_folder(config, backend or open_backend(config.model), folder, observer)


def estimate(config: Config, runs: Path | str = RUNS) -> Estimate:
    """Estimate what a run of the config would cost at most, without calling its backend.

    Raises:
        ConfigError: a method whose queries cannot be known beforehand.
    """
    method = load_method(config)
    plan = method.plan(config.evaluation.references)
    if plan is None:
        raise ConfigError(f"the queries of method {config.method.name} are not known beforehand: no estimate.")
    gauge = open_gauge(config.model, plan)
    task = method.worded(make_task(config.task, gauge.kind))
    split = make_split(config.data, task, config.seed)
    split = replace(split, test=limited(split.test, config.evaluation.rows))
    others = [rows for _, rows in other_tests(config.evaluation, task, gauge.kind, config.data)]
    wordings = method.wordings(task, split.train, config.seed, gauge)
    speed, free = speed_of_last(Path(runs), config.model), content_free_rows()
    if isinstance(task, GenerationTask):
        by_metric = method.tree()[1].get("objective", {}).get("loss") == "negative_metric"
        return estimated_texts(config.price, plan, task, wordings, split, others, gauge, speed, by_metric)
    return estimated(config.price, plan, task, wordings, split, others, gauge, speed, config.calibration, free)


def _in_folder(config: Config, backend: Backend, folder: RunFolder, observer: Observer | None) -> Outcome:
    """Train, test and save in the run's folder."""
    with _watched(config, observer) as observer:
        observer.opened(folder.path)
        method = load_method(config)
        experiment = make_experiment(config, backend, folder.log, observer)
        if not method.replays:
            folder.log.forget()
        done = _trained_and_tested(config, method, experiment)
        _save(done.classifier, folder.path)
        if done.outputs:
            write_lines(folder.path / OUTPUTS, done.outputs)
        folder.write_result(done.result)
        observer.finished(done.result)
    return Outcome(config, done.result, done.classifier, folder.path)


@contextmanager
def _watched(config: Config, observer: Observer | None) -> Iterator[Observer]:
    """A context with the observer given and those that the config names; a run that stops tells them so."""
    observer = watching(config.observers, observer)
    observer.configured(resolved_tree(config))
    try:
        yield observer
    except BaseException:
        observer.finished(None)
        raise


def _trained_and_tested(config: Config, method: Method, experiment: Experiment) -> Tested:
    """Train and test, and write what is done to the program's log."""
    rows, name = experiment.split, method.label(config.method.name)
    counts = f"{len(rows.train)} train, {len(rows.dev)} dev and {len(rows.test)} test rows"
    LOG.info("%s on %s (%s), model %s.", name, experiment.task.name, counts, experiment.backend.info.name)
    trained = method.train(experiment)
    LOG.info("%s has ended after %d train queries; now the test.", name, experiment.ledger.train_queries)
    done = tested(experiment, trained)
    LOG.info("%s", selected_line(done.result))
    for prompt, metrics in done.result["test"].items():
        LOG.info("test, %s: %s", prompt, ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()) or "no rows")
    return done


def _save(classifier: Classifier | Generator, folder: Path) -> None:
    """Save what a `Predictor` loads.

    Raises:
        OSError: a full disk, or a folder that cannot be written to; says how to go on.
    """
    try:
        classifier.save(folder)
    except (SafetensorError, OSError) as error:
        what_to_do = f"Mend that, then save again or bbt resume {folder}."
        raise OSError(f"cannot save to {folder}: {error}. {what_to_do}") from error


def _extend(folder: RunFolder, what: str, first: float | None, value: float | None) -> None:
    """Note a larger budget of `queries`, or a higher price `ceiling`, in the log.

    Raises:
        RunError: it is less than the run has, or the run has none.
    """
    if value is None:
        return
    if first is None:
        raise RunError(f"{folder.path} has no {what} to extend.")
    present = max([first, *(event[what] for event in folder.log.of("extend") if what in event)])
    if value < present:
        raise RunError(f"{folder.path} has a budget of {present:g} {what} already; {value:g} is no extension.")
    if value > present:
        folder.log.append({"event": "extend", what: value})
