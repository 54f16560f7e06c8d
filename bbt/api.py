"""The top-level API: the one place, beside the command line, that puts `bbt` and `backends` together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from backends.gauge import open_gauge
from bbt.backend import Backend
from bbt.build import make_experiment
from bbt.config import Config, make_config, read_run_config
from bbt.errors import BbtError, ConfigError, RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.generators import Generator
from bbt.experiment.tested import tested
from bbt.files import write_atomically, write_lines
from bbt.methods import label, load_method, to_yaml
from bbt.predictor import Predictor, open_backend
from bbt.runs.estimate import Estimate, estimated, speed_of_last
from bbt.runs.folder import RunFolder, read_result, write_result
from bbt.runs.observer import Observer, watching
from bbt.tasks.configured import limited, make_split, make_task, other_tests

RUNS = Path("runs")
OUTPUTS = "outputs.jsonl"
"""What was generated on a run's test rows, beside their references."""


@dataclass(frozen=True)
class Outcome:
    """What a run gives: its config, its result (see `result.json`), what was trained, and its folder if it has one."""

    config: Config
    result: dict[str, Any]
    classifier: Classifier | Generator
    folder: Path | None = None

    def save(self, folder: Path | str) -> None:
        """What a `Predictor` loads, in a folder of its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", to_yaml(self.config))
        _save(self.classifier, folder)
        write_result(folder, self.result)


def tune(
    config: Config | Mapping[str, Any], backend: Backend | None = None, observer: Observer | None = None
) -> Outcome:
    """Run in memory, without a run folder; `backend` overrides the config's model."""
    config = config if isinstance(config, Config) else make_config(config)
    method = load_method(config)
    observer = watching(config.observers, observer)
    experiment = make_experiment(config, backend or open_backend(config.model), observer=observer)
    done = tested(experiment, method.train(experiment))
    return Outcome(config, done.result, done.classifier)


def run(config: Config, runs: Path = RUNS, observer: Observer | None = None) -> Outcome:
    """Run in a new run folder under `runs`; whatever stops it, `resume` goes on from there.

    A config that cannot be run (a BbtError before the first generation) leaves no folder behind.
    """
    text = to_yaml(config)
    backend = open_backend(config.model)
    name = config.name or f"{config.task.name.replace(':', '-')}-{label(config)}-seed{config.seed}"
    with RunFolder.create(runs, name, text) as folder:
        try:
            return _in_folder(config, backend, folder, observer)
        except BbtError:
            if not folder.log.of("generation"):
                folder.discard(runs)
            raise


def resume(
    path: Path, queries: int | None = None, observer: Observer | None = None, ceiling: float | None = None
) -> Outcome:
    """Go on with a run as if it had never stopped; `queries` extends its budget first, `ceiling` its money.

    Methods whose log is no checkpoint (trainings) begin again from their seed, unless they have finished.

    Raises:
        RunError: not a run, in use, or a budget or ceiling that is no extension.
    """
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
        return _in_folder(config, open_backend(config.model), folder, observer)


def estimate(config: Config, runs: Path = RUNS) -> Estimate:
    """What a run of the config would cost at most, without calling its backend.

    Raises:
        ConfigError: a method whose queries cannot be known beforehand.
    """
    plan = load_method(config).plan(config.evaluation.references)
    if plan is None:
        raise ConfigError(f"the queries of method {config.method.name} are not known beforehand: no estimate.")
    gauge = open_gauge(config.model, plan)
    task = make_task(config.task, gauge.kind)
    if task.scored_by != "label_words":
        raise ConfigError(f"no estimate is known for tasks that are scored by {task.scored_by.replace('_', ' ')}.")
    split = make_split(config.data, task, config.seed)
    split = replace(split, test=limited(split.test, config.evaluation.rows))
    others = [rows for _, rows in other_tests(config.evaluation, task, gauge.kind)]
    return estimated(config.price, plan, task, split, others, gauge, speed_of_last(runs, config.model))


def _in_folder(config: Config, backend: Backend, folder: RunFolder, observer: Observer | None) -> Outcome:
    """Train, test, save."""
    observer = watching(config.observers, observer)
    observer.opened(folder.path)
    method = load_method(config)
    experiment = make_experiment(config, backend, folder.log, observer)
    if not method.replays:
        folder.log.forget()
    done = tested(experiment, method.train(experiment))
    _save(done.classifier, folder.path)
    if done.outputs:
        write_lines(folder.path / OUTPUTS, done.outputs)
    folder.write_result(done.result)
    return Outcome(config, done.result, done.classifier, folder.path)


def _save(classifier: Classifier | Generator, folder: Path) -> None:
    """What a `Predictor` loads.

    Raises:
        OSError: a full disk, which safetensors tells in an error of its own.
    """
    try:
        classifier.save(folder)
    except SafetensorError as error:
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
