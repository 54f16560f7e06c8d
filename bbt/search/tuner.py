"""The tuner asks an optimizer for candidates, scores them and tells their losses; now and then dev judges, and the
search ends when the budget is spent."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bbt.errors import RunError
from bbt.optimizers import Optimizer, ScoreOptimizer
from bbt.runs.log import EventLog, decode_losses, decode_scores, encode_losses, encode_scores
from bbt.runs.observer import Progress
from bbt.scoring.judge import DevJudge, Verdict, recorded_verdicts, verdict_facts
from bbt.scoring.ledger import Ledger
from bbt.scoring.objective import ScoredLoss, TrainingLoss
from bbt.scoring.spending import Spending
from bbt.search.schedule import Schedule
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Latents, Losses, Scores

LOG = logging.getLogger(__name__)

EXHAUSTED = 20
"""Generations without one new prompt after which a search over prompts of words ends."""


@dataclass(frozen=True)
class Candidate:
    """A prompt that dev has judged."""

    who: str
    """Where it came from, for the tables: manual, untuned, mean, or train best 1, 2, ..."""
    prompt: AnyPrompts
    """Embeddings (T, H), deep ones (L, T, H), or the tokens (T,) of a hard prompt."""
    verdict: Verdict
    """How dev has judged it."""
    train_queries: int
    """The train queries that had been spent by then."""


@dataclass(frozen=True)
class Generation:
    """A generation that was scored."""

    latents: Latents
    """The candidates (n, d)."""
    losses: Losses
    """Their training losses (n,); a broken candidate's is +inf."""
    scores: Scores | None = None
    """Their label scores (n, B, K) as the log holds them, where the optimizer learns from these."""


@dataclass
class Tuner:
    """A search that keeps the candidate that dev judges best.

    With a log that holds events the loop recalls instead of scoring, so that it comes to where the run was
    stopped without a query and goes on from there.
    """

    optimizer: Optimizer
    """What proposes the candidates z (n, d) of a generation."""
    space: Space
    """What says which prompts they stand for."""
    objective: TrainingLoss
    """The training loss that is minimised."""
    judge: DevJudge
    """What judges candidates on dev rows."""
    ledger: Ledger
    """Where queries, bytes and seconds are counted."""
    log: EventLog
    """Where events are recorded, and recalled from."""
    schedule: Schedule
    """The budget, and when dev judges."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    """A function that is told of the search's progress after each generation."""
    spending: Spending | None = None
    """The search's money (none: there is no ceiling)."""
    scored: ScoredLoss | None = None
    """The objective as what tells label scores, for an optimizer that learns from them (none: it is told losses)."""
    best: Candidate | None = field(default=None, init=False)
    """The best candidate so far, the manual prompt apart."""
    manual: Candidate | None = field(default=None, init=False)
    """The manual prompt, where it competes."""
    baselines: list[Candidate] = field(default_factory=list, init=False)
    """The manual and the untuned prompt, where they compete."""
    last_check: int = field(default=0, init=False)
    """The train queries that had been spent at the last dev check."""
    _contenders: list[tuple[float, NDArray[np.float64]]] = field(default_factory=list, init=False)
    """Loss and z (d,) of the candidates of lowest training loss since the last check."""
    _checks_without_better: int = field(default=0, init=False)
    """The dev checks since one has found a better candidate."""
    _generations_without_query: int = field(default=0, init=False)
    """The generations since one had a prompt that had not been scored before."""
    _ceilings_reached: int = field(default=0, init=False)
    """How many of the spending's ceilings have been reached."""

    def run(self) -> Candidate:
        """Spend the budget, and return the best candidate by dev, or the manual prompt where that is not clearly
        worse."""
        if self.schedule.baselines:
            self._judge_baselines()
        self.schedule.drive(self)
        if self.best is None:
            self.check()
        assert self.best is not None
        return self.best if self.manual is None or self._clearly_better(self.best, self.manual) else self.manual

    @property
    def spent(self) -> int:
        """The train queries spent so far."""
        return self.ledger.train_queries

    @property
    def recorded(self) -> str | None:
        """The next event of a run that is being replayed; None where its record ends."""
        return self.log.upcoming

    def done(self) -> bool:
        """Whether the search is out of patience or money, or, over hard prompts, finds only what it has scored."""
        patience = self.schedule.patience
        impatient = patience is not None and self._checks_without_better >= patience
        return impatient or self._generations_without_query >= EXHAUSTED or self._out_of_money()

    def generation(self) -> None:
        """Ask for a population, score it and tell its losses."""
        before = self.spent
        self._generation()
        self._generations_without_query = 0 if self.spent > before else self._generations_without_query + 1

    def _generation(self) -> None:
        start = time.perf_counter()
        latents = self._propose()
        asked = time.perf_counter()
        generation = self._first(latents)
        scored = time.perf_counter()
        self._tell(generation)
        self.ledger.optimizer_seconds += asked - start + time.perf_counter() - scored
        self._remember(generation.latents, generation.losses)
        best = self.best.verdict.metric if self.best else None
        self.on_progress(Progress(self.ledger.train_queries, float(generation.losses.min()), best))

    def _propose(self) -> Latents:
        """Ask the optimizer for a generation (n, d)."""
        return self.optimizer.ask()

    def _tell(self, generation: Generation) -> None:
        """Tell the optimizer what was found, with the label scores where it learns from them."""
        losses = penalised(generation.losses)
        if generation.scores is None or self._told_scores is None:
            self.optimizer.tell(generation.latents, losses)
        else:
            learner, scored = self._told_scores
            learner.tell_scores(generation.latents, losses, generation.scores, scored.labels)

    @property
    def _told_scores(self) -> tuple[ScoreOptimizer, ScoredLoss] | None:
        """The optimizer and the objective, where label scores go from the one to the other."""
        if self.scored is None or not isinstance(self.optimizer, ScoreOptimizer):
            return None
        return self.optimizer, self.scored

    def _first(self, latents: Latents) -> Generation:
        """The candidates (n, d) of which the optimizer is told, here all that it has proposed, recalled or scored."""
        recalled = self._recalled(latents)
        if recalled is not None:
            return recalled
        start = time.perf_counter()
        if self._told_scores is None:
            generation, facts = Generation(latents, self.objective.latent_losses(latents, self.space)), {}
        else:
            scored = self._told_scores[1]
            losses, scores = scored.scored_latents(latents, self.space)
            facts = {"scores": encode_scores(scores)}
            rounded = decode_scores(facts["scores"], len(latents), len(scored.labels))
            generation = Generation(latents, losses, rounded)
        self.ledger.seconds += time.perf_counter() - start
        self._record(latents, generation.losses, **facts)
        return generation

    def _recalled(self, latents: Latents) -> Generation | None:
        """What is recorded of a generation (n, d); None where the record ends.

        Raises:
            RunError: its label scores are needed and were not recorded.
        """
        recorded = self.log.recall("generation", candidates=_checksum(latents))
        if recorded is None:
            return None
        self.ledger.restore(recorded["ledger"])
        losses = decode_losses(recorded["losses"])
        self.objective.recall(latents, self.space, losses)
        if self._told_scores is None:
            return Generation(latents, losses)
        if "scores" not in recorded:
            raise RunError(f"{self.log.path} holds no label scores, of which the optimizer learns; start a new run.")
        n_rows = len(self._told_scores[1].labels)
        return Generation(latents, losses, decode_scores(recorded["scores"], len(latents), n_rows))

    def _record(self, latents: Latents, losses: Losses, **facts: object) -> None:
        """Record the losses (n,) of a generation (n, d), and what else there is to be known of it."""
        self._append("generation", candidates=_checksum(latents), losses=encode_losses(losses), **facts)

    def _remember(self, latents: Latents, losses: Losses) -> None:
        """Keep the candidates of lowest training loss since the last check."""
        pairs = [(float(loss), z) for loss, z in zip(losses, latents, strict=True) if np.isfinite(loss)]
        self._contenders = sorted(self._contenders + pairs, key=lambda pair: pair[0])[: self.schedule.n_best]

    def _judge_baselines(self) -> None:
        """Let dev judge the untuned p0 and the manual prompt, which compete so that tuning makes nothing worse."""
        names, prompts = ["manual", "untuned"], [self.space.no_prompt, self.space.p0]
        verdicts = self._judged(
            names, lambda: self._verdicts(prompts), lambda recorded: self.judge.remember(prompts, recorded)
        )
        self.baselines = [
            Candidate(name, prompt[0], verdict, self.spent)
            for name, prompt, verdict in zip(names, prompts, verdicts, strict=True)
        ]
        self.manual, self.best = self.baselines

    def _clearly_better(self, candidate: Candidate, manual: Candidate) -> bool:
        """Whether the candidate beats the manual prompt by the margin. A smaller lead is noise, of which a search over
        many prompts finds plenty."""
        s = self.schedule
        return candidate.verdict.clearly_better_than(manual.verdict, s.by, s.margin, self.judge.n_examples)

    def check(self) -> None:
        """Let dev judge the distribution's mean and the best candidates since the last check."""
        best = self.best
        latents = np.array([self.optimizer.mean, *(z for _, z in self._contenders)])
        names = ["mean", *(f"train best {i + 1}" for i in range(len(latents) - 1))]
        verdicts = self._judged(
            names,
            lambda: self.judge.latent_verdicts(latents, self.space),
            lambda recorded: self.judge.recall(latents, self.space, recorded),
        )
        self._keep_best(names, latents, verdicts)
        self._contenders = []
        self.last_check = self.spent
        self._checks_without_better = self._checks_without_better + 1 if self.best is best else 0
        if self.best:
            found = self.best.verdict
            LOG.info("%d queries: best dev metric %.4f, dev loss %.4f.", self.spent, found.metric, found.loss)

    def _judged(
        self, names: list[str], judge: Callable[[], list[Verdict]], recall: Callable[[list[Verdict]], None]
    ) -> list[Verdict]:
        """The verdicts of dev on prompts of these names, recalled or given by `judge`."""
        recorded = self.log.recall("dev", names=names)
        if recorded:
            self.ledger.restore(recorded["ledger"])
            verdicts = recorded_verdicts(recorded)
            recall(verdicts)
        else:
            start = time.perf_counter()
            verdicts = judge()
            self.ledger.seconds += time.perf_counter() - start
            self._append("dev", names=names, **verdict_facts(verdicts))
        return verdicts

    def _keep_best(self, names: list[str], latents: Latents, verdicts: list[Verdict]) -> None:
        """Keep the best of latents (n, d) by their verdicts, if it is better than the best so far. Only then are
        prompts made, for each takes a product with all of A."""
        best, chosen = self.best.verdict if self.best else None, None
        for i, verdict in enumerate(verdicts):
            if best is None or verdict.better_than(best, self.schedule.by):
                best, chosen = verdict, i
        if chosen is not None:
            prompt = self.space.prompts(latents)[chosen]
            self.best = Candidate(names[chosen], prompt, verdicts[chosen], self.spent)

    def _verdicts(self, prompts: list[AnyPrompts]) -> list[Verdict]:
        """The verdicts on prompts, of which those of one length are scored in one call."""
        if len({prompt.shape for prompt in prompts}) == 1:
            return self.judge.verdicts(np.concatenate(prompts))
        return [self.judge.verdicts(prompt)[0] for prompt in prompts]

    def _append(self, kind: str, **facts: object) -> None:
        self.log.append({"event": kind, **facts, "ledger": self.ledger.snapshot()})

    def _out_of_money(self) -> bool:
        """Whether another generation would exceed the last ceiling; dev is asked at each."""
        if self.spending is None:
            return False
        reached = self.spending.reached()
        if reached > self._ceilings_reached and self.spent > self.last_check:
            self.check()
        self._ceilings_reached = reached
        return reached == len(self.spending.ceilings)


def penalised(losses: Losses) -> Losses:
    """The losses (n,) as finite numbers for the optimizer: a broken candidate's is somewhat worse than the worst sound
    one."""
    finite = losses[np.isfinite(losses)]
    worst = float(finite.max()) + 1.0 if len(finite) else 0.0
    return np.where(np.isfinite(losses), losses, worst)


def _checksum(latents: Latents) -> str:
    return hashlib.sha256(np.ascontiguousarray(latents).tobytes()).hexdigest()[:16]
