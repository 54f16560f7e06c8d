"""An experiment is one run: its task, rows, model, log and ledger; a method makes a `Trained` of it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bbt.backend import Backend, HearingBackend
from bbt.differences import first_difference
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier, SoftPromptClassifier
from bbt.experiment.generators import Generator, SoftPromptGenerator
from bbt.prompts import SoftPrompt
from bbt.runs.environment import environment
from bbt.runs.log import EventLog
from bbt.runs.observer import Observer
from bbt.scoring.calibration import CONTENT_FREE
from bbt.scoring.judge import Verdict, verdict_facts, verdicts
from bbt.scoring.ledger import Ledger, warn_of_cut_rows
from bbt.scoring.many_words import WordsJudge
from bbt.scoring.readout import Strength
from bbt.scoring.scorers import scorer_of
from bbt.scoring.targets import text_verdict
from bbt.settings import CalibrationKind, PriceConfig
from bbt.tasks import Example, GenerationTask, Split, Task
from bbt.types import Event, Prompts, RowScores


@dataclass(frozen=True)
class Trained:
    """What a method has made of an experiment."""

    classifier: Classifier | Generator
    """The state of the method that dev chose."""
    who: str
    """Which of the method's states that is, for the tables."""
    verdict: Verdict
    """How dev has judged it."""
    train_queries: int
    """The train queries that had been spent by then."""
    n_parameters: int
    """How many numbers were tuned."""
    references: Mapping[str, Classifier | Generator] = field(default_factory=dict)
    """What the outcome is to be tested beside, by name."""
    prompt_text: str | None = None
    """The prompt in words, where it has any."""
    biases: Mapping[str, tuple[float, ...] | None] = field(default_factory=dict)
    """(K,) class biases of the references, by name, where they are known."""


@dataclass(eq=False)
class Experiment:
    """The parts of one run, which a method is given. The log may hold a run that was stopped."""

    task: Task
    """The template, label words and metrics."""
    split: Split
    """Train and dev rows, and the test rows that `result` is to be on."""
    backend: Backend
    """The model that scores."""
    seed: int = 0
    """The seed of everything that the method draws."""
    log: EventLog = field(default_factory=EventLog)
    """Where events are recorded, and recalled from when a run is resumed."""
    observer: Observer = field(default_factory=Observer)
    """Who is told how the run goes."""
    other_tests: Sequence[tuple[Task, Sequence[Example]]] = ()
    """Other tasks on which the outcome is tested too, in this task's words, with their rows."""
    references: bool = True
    """Whether what the method started from is tested too."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """What tokens cost, and the ceiling under which the run must stay."""
    calibration: CalibrationKind = "fitted"
    """How each prompt's class biases are found, before it is judged and when it is tested."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be known of the run: it is saved with every prompt, told in the result, and compared on
    resuming."""

    def __post_init__(self) -> None:
        self.ledger = Ledger()
        self._told_of_cut_dev_rows = False
        self.log.listener, self.log.witness = self._recorded, self._with_what_was_heard
        self.train = scorer_of(self.backend, self.task, self.split.train, self.ledger)
        self.dev = scorer_of(self.backend, self.task, self.split.dev, self.ledger)
        needs_free = self.calibration == "content-free"
        free = content_free_rows()
        self.content_free = scorer_of(self.backend, self.task, free, self.ledger) if needs_free else None
        self.strength: Strength | None = None  # of readouts; set by `bbt.experiment.many_words`
        self._begin()

    @property
    def method(self) -> str:
        """The name of the method, for errors."""
        return str(self.facts.get("method", "this"))

    @property
    def manual(self) -> SoftPromptClassifier:
        """The manual prompt, which is the template's words alone."""
        return self.soft_prompt(self.no_prompt, None)

    @property
    def no_prompt(self) -> Prompts:
        """The vectors (0, H) of a soft prompt without tokens."""
        return np.zeros((0, self.backend.info.hidden_size), np.float32)

    def soft_prompt(
        self, embeddings: Prompts, anchor: Prompts | None, task: Task | None = None, **facts: Any
    ) -> SoftPromptClassifier:
        """Make a classifier of a soft prompt (T, H) or a deep one (L, T, H), with its provenance, to which `facts` add.
        `anchor` (T, H) is as in `SoftPrompt`; `task` is given where its wording is not the experiment's."""
        info, task = self.backend.info, task or self.task
        words, names, template = task.label_words, task.label_names, task.template.source
        origin = self.provenance(task, **facts)
        of = embeddings, info.name, info.fingerprint, template, words, names, anchor, origin
        prompt = SoftPrompt(*of, scored_by=task.scored_by, words=task.words)
        return SoftPromptClassifier(self.backend, task, prompt)

    def generator(self, embeddings: Prompts, **facts: Any) -> SoftPromptGenerator:
        """A prompt (T, H) with its provenance, to which `facts` add, for a task whose answer is a text."""
        task, info = self.generation_task, self.backend.info
        of = embeddings, info.name, info.fingerprint, task.template.source, (), (), None
        prompt = SoftPrompt(*of, self.provenance(task, **facts), scored_by=task.scored_by, decoding=task.decoding)
        return SoftPromptGenerator(self.backend, task, prompt)

    def prompted(self, embeddings: Prompts) -> Classifier | Generator:
        """Make what the task asks for of a soft prompt (T, H), with its provenance: a classifier or a generator."""
        return self.generator(embeddings) if self.generates else self.soft_prompt(embeddings, None)

    @property
    def generation_task(self) -> GenerationTask:
        """The task, whose answer is a text."""
        assert isinstance(self.task, GenerationTask), "`Method.takes` is looked at before"
        return self.task

    @property
    def generates(self) -> bool:
        """Whether the task's answer is a text."""
        return isinstance(self.task, GenerationTask)

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

    def judge(
        self,
        classifier: Classifier,
        who: str,
        dev: RowScores | None = None,
        train: RowScores | None = None,
        held_in: bool = True,
    ) -> Verdict:
        """Judge a classifier on dev, with its class biases, and log the verdict. Counts one dev query where its dev
        scores are not known.

        `dev` (Bd, K) and `train` (B, K) are its scores where they are known already, so that they cost nothing. Without
        `held_in` its train scores say nothing, since it has seen the answers, and biases are fitted on dev rows alone.
        """
        start = time.perf_counter()
        if dev is None:
            cut = self.ledger.truncated
            dev = classifier.scores(self.split.dev, self.ledger)
            self.ledger.dev_queries += 1
            self._tell_of_cut_dev_rows(self.ledger.truncated - cut)
        if self.calibration == "fitted" and held_in and train is None:
            train = classifier.scores(self.split.train, self.ledger)
        before = (train[None], self.train.labels) if self.calibration == "fitted" and train is not None else None
        (verdict,) = verdicts(
            self.task,
            self.dev.labels,
            dev[None],
            self.calibration,
            before,
            lambda: classifier.scores(content_free_rows(), self.ledger)[None],
        )
        return self._logged(who, verdict, start)

    def judge_words(self, classifier: SoftPromptClassifier, who: str) -> Verdict:
        """Judge a prompt on dev rows where labels are read from many words; counts one dev query and logs it."""
        assert self.strength is not None, "whoever asks has looked"
        start = time.perf_counter()
        judge = WordsJudge(self.dev, self.task, self.ledger, self.train, self.strength)
        (verdict,) = judge.verdicts(classifier.prompt.batch)
        return self._logged(who, verdict, start)

    def judge_generator(self, generator: Generator, who: str) -> Verdict:
        """How it does on dev rows whose answer is a text; counts one dev query and logs it."""
        start, dev, cut = time.perf_counter(), self.split.dev, self.ledger.truncated
        scores = generator.target_scores(dev, self.ledger)
        self.ledger.dev_queries += 1
        verdict = text_verdict(self.generation_task, dev, scores, lambda: generator.texts(dev, self.ledger))
        self._tell_of_cut_dev_rows(min(self.ledger.truncated - cut, len(dev)))  # texts may count the same rows again
        return self._logged(who, verdict, start)

    def _tell_of_cut_dev_rows(self, n_cut: int) -> None:
        """Tell the user, once, that dev rows were cut."""
        if not self._told_of_cut_dev_rows:
            warn_of_cut_rows(n_cut, len(self.split.dev))
        self._told_of_cut_dev_rows = True

    def _logged(self, who: str, verdict: Verdict, start: float) -> Verdict:
        """The verdict, which has taken the time since `start`, in the log."""
        self.ledger.seconds += time.perf_counter() - start
        self.log.append({"event": "dev", "names": [who], **verdict_facts([verdict]), "ledger": self.ledger.snapshot()})
        return verdict

    def _with_what_was_heard(self, event: Event) -> Event:
        """An event that tells of scores, with what the backend has heard by then."""
        heard = {"heard": self.backend.heard} if isinstance(self.backend, HearingBackend) and "ledger" in event else {}
        return {**event, **heard}

    def _recorded(self, event: Event) -> None:
        """Tell the observer of an event, new or recalled, and the backend of what was heard by then."""
        if isinstance(self.backend, HearingBackend) and "heard" in event:
            self.backend.hear(event["heard"])
        self.observer.recorded(event)

    def _begin(self) -> None:
        """Record in the first event all that the recorded numbers depend on, so that a change is noticed, by its name,
        when the run is resumed.

        Raises:
            RunError: a run that was made otherwise.
        """
        info, task = self.backend.info, self.task
        facts = {
            "model": info.fingerprint,
            "precision": info.precision,
            "rows": _fingerprint(self.split),
            "template": task.template.source,
            "label_words": list(task.label_words),
            "seed": self.seed,
            "calibration": self.calibration,
            "settings": dict(self.facts.get("settings", {})),
        }
        recorded = self.log.recall("start")
        if recorded is None:
            self.log.append({"event": "start", **facts, **environment(), "info": asdict(info)})
            return
        changed = first_difference({key: recorded[key] for key in facts if key in recorded}, facts, only_common=True)
        if changed:
            raise RunError(
                f"cannot replay event 0 of {self.log.path}: {changed}. What follows was recorded before that change. "
                "Put it back, or start a new run."
            )


def content_free_rows() -> list[Example]:
    """Rows that say nothing; their labels mean nothing."""
    return [Example(text, 0, text) for text in CONTENT_FREE]


def _fingerprint(split: Split) -> str:
    rows: Sequence[Example] = [*split.train, *split.dev]
    return hashlib.sha256(repr([(e.text, e.text_pair, e.label, *e.targets) for e in rows]).encode()).hexdigest()[:16]
