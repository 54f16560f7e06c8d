"""One evaluation, by our backend and by the plain loop, with the seconds of each part."""

import time
from dataclasses import dataclass, field

import numpy as np

from backends.bench.plain import PlainLoop
from backends.bench.workload import Generations
from bbt.types import Latents, Losses, Scores

PARTS = ("optimizer", "projection", "scoring", "loss")


@dataclass
class Evaluation:
    """One generation (with deep prompts one a turn): latents (n, d), scores (n, B, K), losses (n,), seconds by part."""

    latents: list[Latents] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @property
    def n_queries(self) -> int:
        """Candidates scored on all rows."""
        return sum(map(len, self.losses))

    @property
    def queries_per_second(self) -> float:
        """The optimizer's time apart."""
        return self.n_queries / (sum(self.seconds.values()) - self.seconds["optimizer"])


def ours(work: Generations, seed: int) -> Evaluation:
    """Whole populations: ask, project, score, take the loss, tell."""
    done = Evaluation()
    for layer in work.layers:
        clock = [time.perf_counter()]
        tick = lambda: clock.append(time.perf_counter())  # noqa: B023, E731
        latents = work.optimizer.ask()
        tick()
        prompts = work.prompts(latents, layer, seed)
        tick()
        scores = work.scores(prompts)
        tick()
        losses = work.losses(scores)
        tick()
        work.optimizer.tell(latents, losses)
        tick()
        done.latents.append(latents)
        done.scores.append(scores)
        done.losses.append(losses)
        for part, spent in zip((*PARTS, "optimizer"), np.diff(clock), strict=True):
            done.seconds[part] += float(spent)
    return done


def plainly(work: Generations, loop: PlainLoop, population: list[Latents], seed: int) -> Evaluation:
    """The same candidates one at a time: project one, score it, take its loss."""
    done = Evaluation(latents=population)
    for layer, latents in zip(work.layers, population, strict=True):
        start, scores, losses = time.perf_counter(), [], []
        for i in range(len(latents)):
            prompts = work.prompts(latents[i : i + 1], layer, seed)
            scores.append(loop.scores(prompts[0]))
            losses.append(work.losses(scores[-1][None])[0])
        done.seconds["scoring"] += time.perf_counter() - start
        done.scores.append(np.array(scores))
        done.losses.append(np.array(losses))
    return done
