"""One evaluation is made by our backend and by the plain loop, with the seconds of each part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from backends.bench.plain import PlainScores
from backends.bench.workload import Generations
from bbt.types import Latents, Losses, Scores

PARTS = ("optimizer", "projection", "scoring", "loss")


@dataclass
class Evaluation:
    """What scoring one generation gave, turn by turn, and how long it took. With deep prompts each measured layer has a
    turn, else there is one."""

    latents: list[Latents] = field(default_factory=list)
    """(n, d) candidates of each turn."""
    scores: list[Scores] = field(default_factory=list)
    """(n, B, K) label scores of each turn."""
    losses: list[Losses] = field(default_factory=list)
    """(n,) losses of each turn."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """Seconds by part."""

    @property
    def n_queries(self) -> int:
        """The number of candidates scored on all rows."""
        return sum(map(len, self.losses))

    @property
    def queries_per_second(self) -> float:
        """Queries a second, without the optimizer's time."""
        return self.n_queries / (sum(self.seconds.values()) - self.seconds["optimizer"])

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """A context whose time is counted for a part."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def ours(work: Generations, seed: int) -> Evaluation:
    """Evaluate whole populations: ask, project, score, take the loss, tell."""
    done = Evaluation()
    for layer in work.layers:
        with done.timing("optimizer"):
            latents = work.optimizer.ask()
        if work.sends_latents:
            with done.timing("scoring"):
                scores = work.backend.latent_scores(latents, work.space, work.encoded)
        else:
            with done.timing("projection"):
                prompts = work.prompts(latents, layer, seed)
            with done.timing("scoring"):
                scores = work.scores(prompts)
        with done.timing("loss"):
            losses = work.losses(scores)
        with done.timing("optimizer"):
            work.optimizer.tell(latents, losses)
        done.latents.append(latents)
        done.scores.append(scores)
        done.losses.append(losses)
    return done


def plainly(work: Generations, loop: PlainScores, population: list[Latents], seed: int) -> Evaluation:
    """Evaluate the same candidates one at a time: project one, score it, take its loss."""
    done = Evaluation(latents=population)
    for layer, latents in zip(work.layers, population, strict=True):
        with done.timing("scoring"):
            prompts = (work.prompts(z[None], layer, seed)[0] for z in latents)
            scores = [loop.scores(prompt) for prompt in prompts]
            losses = [work.losses(s[None])[0] for s in scores]
        done.scores.append(np.array(scores))
        done.losses.append(np.array(losses))
    return done
