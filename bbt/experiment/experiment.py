"""One run: its task, rows, model, log and ledger; what a method makes of them, and how that tests."""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bbt.backend import Backend, DeviceBackend
from bbt.errors import BackendError
from bbt.experiment.classifiers import Classifier, SoftPromptClassifier
from bbt.prompts import SoftPrompt
from bbt.runs.environment import environment
from bbt.runs.log import EventLog, encode_losses
from bbt.runs.observer import Observer
from bbt.scoring.judge import Verdict, verdicts
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import predicted
from bbt.scoring.scorer import Scorer
from bbt.settings import PriceConfig
from bbt.tasks import Example, Split, Task
from bbt.tasks.task import labels_of
from bbt.types import Prompts, RowScores


@dataclass(frozen=True)
class Trained:
    """What a method has made of an experiment."""

    classifier: Classifier
    """What dev chose."""
    who: str
    """Which of the method's states that is."""
    verdict: Verdict
    """How dev judged it."""
    train_queries: int
    """Train queries spent by then."""
    n_parameters: int
    """How many numbers were tuned."""
    references: Mapping[str, Classifier] = field(default_factory=dict)
    """What it is to be tested beside, by name."""
    prompt_text: str | None = None
    """The prompt in words, where it has any."""


@dataclass(eq=False)
class Experiment:
    """The parts of one run, which a method is given. The log may hold a run that was stopped."""

    task: Task
    split: Split
    """Train and dev rows, and the test rows that `result` is to be on."""
    backend: Backend
    seed: int = 0
    log: EventLog = field(default_factory=EventLog)
    observer: Observer = field(default_factory=Observer)
    other_tests: Sequence[tuple[Task, Sequence[Example]]] = ()
    """Other tasks that are put to the outcome in this one's words, and their rows."""
    references: bool = True
    """Whether what the method started from is tested too."""
    price: PriceConfig = field(default_factory=PriceConfig)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be known of the run: saved with every prompt, told in the result, and compared on resuming."""

    def __post_init__(self) -> None:
        self.ledger = Ledger()
        self.train = Scorer(self.backend, self.task, self.split.train, self.ledger)
        self.dev = Scorer(self.backend, self.task, self.split.dev, self.ledger)
        self._begin()

    @property
    def method(self) -> str:
        """What the method is called, for errors."""
        return str(self.facts.get("method", "this"))

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
            "seed": self.seed,
            **{key: self.facts[key] for key in ("method", "backend", "options") if key in self.facts},
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
        info = self.backend.info
        if not math.isfinite(trained.verdict.loss):
            raise BackendError(
                f"every prompt's scores were NaN or infinite in {info.precision}: is the model damaged, "
                "or the precision too low for it? Try model.options.precision=fp32."
            )
        costs = self.ledger.snapshot()
        references = trained.references if self.references else {}
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
            "method": self.facts.get("method"),
            "label": self.facts.get("label", self.facts.get("method", "")),
            "seed": self.seed,
            "test_examples": len(self.split.test),
            "test_note": self.facts.get("test_note"),
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
            **_peak_memory(self.backend),
            "device": info.device,
            "precision": info.precision,
        }

    def _price(self, ledger: Ledger) -> float:
        """Money, by the config's price."""
        return self.price.of(ledger.tokens_up, ledger.tokens_down)

    def tested(self, classifier: Classifier, ledger: Ledger) -> dict[str, float]:
        """The task's metrics on the test rows; none where nothing is to be tested."""
        return _metrics(classifier, self.task, self.split.test, ledger) if self.split.test else {}

    def _begin(self) -> None:
        """The first event names model and rows, so that a changed one is noticed when the run is resumed."""
        facts = {"model": self.backend.info.fingerprint, "rows": _fingerprint(self.split)}
        if not self.log.recall("start", **facts):
            self.log.append({"event": "start", **facts, **environment(), "info": asdict(self.backend.info)})


def _metrics(classifier: Classifier, task: Task, rows: Sequence[Example], ledger: Ledger) -> dict[str, float]:
    return task.evaluate(labels_of(rows), predicted(classifier.scores(rows, ledger)))


def _fingerprint(split: Split) -> str:
    rows: Sequence[Example] = [*split.train, *split.dev]
    return hashlib.sha256(repr([(e.text, e.text_pair, e.label) for e in rows]).encode()).hexdigest()[:16]


def _peak_memory(backend: Backend) -> dict[str, Any]:
    """Peak memory in MB and whose it is: the device's where the backend's model has one, else what of this process was
    resident (Linux counts it in KiB, macOS in bytes)."""
    of_device = backend.peak_memory_mb() if isinstance(backend, DeviceBackend) else None
    if of_device is not None:
        return {"peak_memory_mb": round(of_device, 1), "peak_memory_of": backend.info.device}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"peak_memory_mb": round(peak / unit, 1), "peak_memory_of": "process"}
