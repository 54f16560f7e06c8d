"""What every method is given, and what it gives back: one run's task, rows, model, ledger and log; its result."""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bbt.backend import Backend
from bbt.build import make_split, make_task, other_test
from bbt.config import Config
from bbt.draws import stable_uniform
from bbt.errors import BackendError
from bbt.experiment.classifiers import Classifier, SoftPromptClassifier
from bbt.prompts.soft import SoftPrompt
from bbt.runs.environment import environment
from bbt.runs.log import EventLog, encode_losses
from bbt.runs.observer import Observer
from bbt.scoring.judge import Verdict, verdicts
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import predicted
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Split, Task
from bbt.tasks.task import labels_of
from bbt.types import Prompts, RowScores


@dataclass(frozen=True)
class Trained:
    """A method's outcome: the classifier that dev chose, who it was and how dev judged it after so many train
    queries, how many numbers were tuned, and what it is to be tested beside."""

    classifier: Classifier
    who: str
    verdict: Verdict
    train_queries: int
    n_parameters: int
    references: Mapping[str, Classifier] = field(default_factory=dict)
    prompt_text: str | None = None


class Experiment:
    """One run, put together from its config and a backend; the log may hold a run to resume."""

    def __init__(
        self, config: Config, backend: Backend, log: EventLog | None = None, observer: Observer | None = None
    ) -> None:
        self.config, self.backend = config, backend
        self.log, self.observer = log or EventLog(), observer or Observer()
        self.ledger = Ledger()
        self.task = make_task(config.task, backend.info.kind)
        split, rows = make_split(config.data, self.task, config.seed), config.evaluation.rows
        self.split = replace(split, test=limited(split.test, rows))
        self.other_tests = other_tests(config, self.task, backend.info.kind)
        self.train = Scorer(backend, self.task, self.split.train, self.ledger)
        self.dev = Scorer(backend, self.task, self.split.dev, self.ledger)
        self._begin()

    @property
    def manual(self) -> SoftPromptClassifier:
        """The manual prompt: the template's words alone."""
        return self.soft_prompt(self.no_prompt, None)

    @property
    def no_prompt(self) -> Prompts:
        """(0, H): no soft prompt at all."""
        return np.zeros((0, self.backend.info.hidden_size), np.float32)

    def soft_prompt(
        self, embeddings: Prompts, anchor: Prompts | None, task: Task | None = None, **facts: Any
    ) -> SoftPromptClassifier:
        """A prompt (T, H), or deep (L, T, H), with its provenance, to which `facts` add; `anchor` (T, H) as in
        `SoftPrompt`, `task` where its wording is not the experiment's."""
        info, task = self.backend.info, task or self.task
        words, names, template = task.label_words, task.label_names, task.template.source
        origin = self.provenance(task, **facts)
        prompt = SoftPrompt(embeddings, info.name, info.fingerprint, template, words, names, anchor, origin)
        return SoftPromptClassifier(self.backend, task, prompt)

    def provenance(self, task: Task, **facts: Any) -> dict[str, Any]:
        """Where a prompt of this run comes from; `facts` add to it."""
        return {
            "task": task.name,
            "metric": task.metrics[0],
            "method": self.config.method.name,
            "seed": self.config.seed,
            "backend": self.config.model.backend,
            "options": self.config.model.options,
            **facts,
            **environment(),
        }

    def judge(self, classifier: Classifier, who: str) -> Verdict:
        """How it does on dev; counts one dev query and logs it."""
        start = time.perf_counter()
        scores = classifier.scores(self.split.dev, self.ledger)
        self.ledger.seconds += time.perf_counter() - start
        self.ledger.dev_queries += 1
        return self.judge_scores(scores, who)

    def judge_scores(self, scores: RowScores, who: str) -> Verdict:
        """How scores (B, K) of the dev rows do, logged; they cost nothing where the model's part is kept."""
        (verdict,) = verdicts(self.task, self.dev.labels, scores[None])
        losses = encode_losses(np.array([verdict.loss]))
        facts = {"names": [who], "metrics": [verdict.metric], "losses": losses, "ledger": self.ledger.snapshot()}
        self.log.append({"event": "dev", **facts})
        return verdict

    def result(self, trained: Trained) -> dict[str, Any]:
        """The outcome on the test set, and what it cost.

        Raises:
            BackendError: nothing that was tried had a finite loss.
        """
        info, config = self.backend.info, self.config
        if not math.isfinite(trained.verdict.loss):
            raise BackendError(
                f"every prompt's scores were NaN or infinite in {info.precision}: is the model damaged, "
                "or the precision too low for it? Try model.options.precision=fp32."
            )
        costs = self.ledger.snapshot()
        references = trained.references if config.evaluation.references else {}
        ledgers = {name: Ledger() for name in (*references, "tuned")}
        classifiers = {**references, "tuned": trained.classifier}
        test = {name: self.tested(classifiers[name], ledger) for name, ledger in ledgers.items()}
        elsewhere = Ledger()
        also_test = {
            task.name: {**_metrics(trained.classifier, task, rows, elsewhere), "examples": len(rows)}
            for task, rows in self.other_tests
        }
        return {
            "task": self.task.name,
            "model": info.name,
            "fingerprint": info.fingerprint,
            "method": config.method.name,
            "label": config.label,
            "seed": config.seed,
            "test_examples": len(self.split.test),
            "test_note": config.data.note,
            "test": test,
            "also_test": also_test,
            "test_truncated": ledgers["tuned"].truncated,
            "selected": {"who": trained.who, **asdict(trained.verdict), "train_queries": trained.train_queries},
            "prompt_text": trained.prompt_text,
            "n_parameters": trained.n_parameters,
            "cost": costs,
            "price": {
                "search": self._price(self.ledger),
                "test": sum(map(self._price, (*ledgers.values(), elsewhere))),
            },
            "peak_memory_mb": _peak_memory_mb(),
            "device": info.device,
            "precision": info.precision,
        }

    def _price(self, ledger: Ledger) -> float:
        """Money, by the config's price."""
        return self.config.price.of(ledger.tokens_up, ledger.tokens_down)

    def tested(self, classifier: Classifier, ledger: Ledger) -> dict[str, float]:
        """The task's metrics on the test rows; none where nothing is to be tested."""
        return _metrics(classifier, self.task, self.split.test, ledger) if self.split.test else {}

    def _begin(self) -> None:
        """The first event names model and rows, so that a changed one is noticed when the run is resumed."""
        facts = {"model": self.backend.info.fingerprint, "rows": _fingerprint(self.split)}
        if not self.log.recall("start", **facts):
            self.log.append({"event": "start", **facts, **environment(), "info": asdict(self.backend.info)})


def other_tests(config: Config, task: Task, kind: str) -> list[tuple[Task, list[Example]]]:
    """The `also_test` of a config: each task, asked in this one's words, and its rows."""
    tests = [
        other_test(name, Path(path) if path else None, task, kind) for name, path in config.evaluation.also_test.items()
    ]
    return [(other, limited(rows, config.evaluation.rows)) for other, rows in tests]


def limited(examples: Sequence[Example], rows: int | None) -> list[Example]:
    """The same draw of test rows for every run, in their order."""
    if rows is None or rows >= len(examples):
        return list(examples)
    chosen = np.sort(stable_uniform(0, len(examples)).argsort(kind="stable")[:rows])
    return [examples[i] for i in chosen]


def _metrics(classifier: Classifier, task: Task, rows: Sequence[Example], ledger: Ledger) -> dict[str, float]:
    return task.evaluate(labels_of(rows), predicted(classifier.scores(rows, ledger)))


def _fingerprint(split: Split) -> str:
    rows: Sequence[Example] = [*split.train, *split.dev]
    return hashlib.sha256(repr([(e.text, e.text_pair, e.label) for e in rows]).encode()).hexdigest()[:16]


def _peak_memory_mb() -> float:
    """This process's peak resident memory in MB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
