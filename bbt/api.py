"""The top-level API: the one place, beside the command line, that puts `bbt` and `backends` together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from backends import load_backend
from bbt.backend import Backend
from bbt.config import Config, ModelConfig, load_config, make_config
from bbt.errors import BbtError, RunError
from bbt.experiment import Experiment, load_prompt, predict
from bbt.losses import log_softmax
from bbt.objective import Ledger, Scorer
from bbt.prompts import SoftPrompt
from bbt.records import EventLog, RunFolder
from bbt.tasks import Example, Task, Template
from bbt.tuner import Progress

RUNS = Path("runs")


class Observer:
    """Told how a run goes; override what you want to see."""

    def started(self, folder: Path | None, budget: int) -> None:
        """The run's folder, if it has one, and its budget in queries."""

    def progressed(self, progress: Progress) -> None:
        """After each generation."""


@dataclass(frozen=True)
class Outcome:
    """What a run gives: its result (see `result.json`), the best prompt, and its folder if it has one."""

    result: dict[str, Any]
    prompt: SoftPrompt
    folder: Path | None = field(default=None)


def tune(
    config: Config | Mapping[str, Any], backend: Backend | None = None, observer: Observer | None = None
) -> Outcome:
    """Tune in memory, without a run folder; `backend` overrides the config's model."""
    config = config if isinstance(config, Config) else make_config(config)
    return _finish(config, backend or open_backend(config.model), EventLog(), observer)


def run(config: Config, runs: Path = RUNS, observer: Observer | None = None) -> Outcome:
    """Tune in a new run folder under `runs`; whatever stops it, `resume` goes on from there.

    A config that cannot be run (a BbtError before the first generation) leaves no folder behind.
    """
    backend = open_backend(config.model)
    name = config.name or f"{config.task.name}-{config.optimizer.name}-seed{config.seed}"
    with RunFolder.create(runs, name, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)) as folder:
        try:
            return _finish(config, backend, folder.log, observer, folder)
        except BbtError:
            if not folder.log.of("generation"):
                folder.discard()
            raise


def resume(path: Path, queries: int | None = None, observer: Observer | None = None) -> Outcome:
    """Go on with a run as if it had never stopped; `queries` extends its budget first.

    Raises:
        RunError: not a run, in use, or a budget that is no extension.
    """
    with RunFolder(path) as folder:
        config = load_config(path / "config.yaml")
        budget = max([config.budget.queries, *(event["queries"] for event in folder.log.of("extend"))])
        if queries is not None and queries < budget:
            raise RunError(f"{path} has a budget of {budget} queries already; {queries} is no extension.")
        backend = open_backend(config.model)
        if queries is not None and queries > budget:
            folder.log.append({"event": "extend", "queries": queries})
        return _finish(config, backend, folder.log, observer, folder)


def open_backend(config: ModelConfig) -> Backend:
    """The backend that a config names."""
    return load_backend(config.backend, model=config.name, **config.options)


class Predictor:
    """A saved prompt on its model, ready for new texts.

    The backend and its options are those of the run that tuned the prompt; `options` override them one by one.
    """

    def __init__(self, path: Path | str, options: Mapping[str, Any] | None = None) -> None:
        self.prompt = SoftPrompt.load(Path(path))
        origin = self.prompt.provenance
        merged = {**origin.get("options", {}), **(options or {})}
        self.backend = load_backend(origin.get("backend", "local"), model=self.prompt.model, **merged)
        self._vectors = load_prompt(self.prompt, self.backend)
        names = self.prompt.label_names
        self.task = Task("saved prompt", Template(self.prompt.template), names, self.prompt.label_words)

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """For each text the label and the probabilities over the label words."""
        pairs = text_pairs or [""] * len(texts)
        examples = [Example(text, 0, pair) for text, pair in zip(texts, pairs, strict=True)]
        scores = Scorer(self.backend, self.task, examples, Ledger()).scores(self._vectors)
        probabilities = np.exp(log_softmax(scores))[0]
        names = self.prompt.label_names
        return [
            {
                "label": names[int(row.argmax())],
                "probabilities": {n: float(p) for n, p in zip(names, row, strict=True)},
            }
            for row in probabilities
        ]

    def evaluate(self, task: Task, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics on examples, with the prompt's own template and label words."""
        own = Task(task.name, self.task.template, task.label_names, self.task.label_words, task.metrics)
        scorer = Scorer(self.backend, own, examples, Ledger())
        return own.evaluate(scorer.labels, predict(scorer, self._vectors))


def _finish(
    config: Config,
    backend: Backend,
    log: EventLog,
    observer: Observer | None,
    folder: RunFolder | None = None,
) -> Outcome:
    """Search, test, save."""
    experiment = Experiment(config, backend, log)
    observer = observer or Observer()
    tuner = experiment.tuner(observer.progressed)
    observer.started(folder.path if folder else None, max(tuner.schedule.budgets))
    best = tuner.run()
    prompt = experiment.soft_prompt(best)
    result = experiment.result(best)
    if folder:
        prompt.save(folder.path / "prompt.safetensors")
        folder.write_result(result)
    return Outcome(result, prompt, folder.path if folder else None)
