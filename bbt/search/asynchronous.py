"""A search that waits for no straggler: a generation is whatever comes first of the candidates that are under way.

There are more candidates under way than a generation takes. As soon as a population of them is scored, the optimizer is
told of these and asked for others; those that were left behind count in a later generation, when they come. Each is
scored by a call of its own, on a thread. Which candidates a generation took is recorded beside their losses, so that
the search is replayed from its log as any other is.
"""

import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from bbt.errors import ConfigError
from bbt.optimizers.base import AsynchronousOptimizer, Optimizer
from bbt.scoring.ledger import Ledger
from bbt.search.tuner import Candidate, Generation, Tuner
from bbt.types import Latents, Losses


def n_ahead(population_size: int) -> int:
    """The candidates that are under way beyond a generation: half of one. With more, no actor would wait, but what the
    optimizer is told would be older."""
    return population_size // 2


def asynchronous(optimizer: Optimizer, name: str) -> AsynchronousOptimizer:
    """Return the optimizer as one that may be told of candidates late. `name` is named in the error.

    Raises:
        ConfigError: it may not.
    """
    if isinstance(optimizer, AsynchronousOptimizer):
        return optimizer
    raise ConfigError(
        f"optimizer.asynchronous: {name} must be told of its whole population; cma, cma-separable and random need not."
    )


@dataclass
class AsynchronousTuner(Tuner):
    """A tuner that tells the optimizer of candidates in the order in which they are scored."""

    _asked: dict[int, Latents] = field(default_factory=dict, init=False)
    """The candidates (d,) that are under way, by their numbers from the search's first on."""
    _n_asked: int = field(default=0, init=False)
    """How many candidates the optimizer was asked for."""
    _running: "dict[int, Future[tuple[float, Ledger]]]" = field(default_factory=dict, init=False)
    """Those of them that are being scored here, each with its loss and cost to come."""
    _scored: "queue.SimpleQueue[int]" = field(default_factory=queue.SimpleQueue, init=False)
    """The numbers of those that are scored, in the order in which that happened."""

    def __post_init__(self) -> None:
        n = self.schedule.population_size
        self._proposing = asynchronous(self.optimizer, type(self.optimizer).__name__)
        self._threads = ThreadPoolExecutor(n + n_ahead(n), thread_name_prefix="candidate")

    def run(self) -> Candidate:
        """Spend the budget; see `Tuner.run`."""
        try:
            best = super().run()
            self._leave()
            return best
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _propose(self) -> Latents:
        """Ask for as many candidates as are to be under way, and return all that are (N, d). Where a budget ends, no
        more are asked for than it pays for, so that none is left over."""
        n = self.schedule.population_size
        wanted = min(n + n_ahead(n), self.schedule.room(self.spent)) - len(self._asked)
        for z in self._proposing.ask_for(wanted) if wanted > 0 else ():
            self._asked[self._n_asked] = z
            self._n_asked += 1
        return np.array(list(self._asked.values()))

    def _first(self, latents: Latents) -> Generation:
        """The candidates of a generation and their losses, recalled or as they are scored first."""
        self._recall_left()
        if self.recorded is None:
            numbers, losses = self._await()
            taken = self._taken(numbers)
            self._record(taken, losses, numbers=numbers)
            return Generation(taken, losses)
        taken = self._taken(self.log.peek("numbers") or [])
        recalled = self._recalled(taken)
        assert recalled is not None, "there is a record"
        return recalled

    def _taken(self, numbers: Sequence[int]) -> Latents:
        return np.array([self._asked.pop(number) for number in numbers if number in self._asked])

    def _await(self) -> tuple[list[int], Losses]:
        """Wait for the first candidates, by number, and their losses; what they cost is counted now, and not before."""
        start = time.perf_counter()
        for number, z in self._asked.items():
            if number not in self._running:
                self._running[number] = self._threads.submit(self._score, z, self.ledger.part())
                self._running[number].add_done_callback(partial(self._note, number))
        numbers = sorted(self._scored.get() for _ in range(self.schedule.population_size))
        losses = [self._count(number) for number in numbers]
        self.ledger.seconds += time.perf_counter() - start
        return numbers, np.array(losses)

    def _note(self, number: int, _: "Future[tuple[float, Ledger]]") -> None:
        self._scored.put(number)

    def _score(self, z: Latents, part: Ledger) -> tuple[float, Ledger]:
        (loss,) = self.objective.counted_in(part).latent_losses(z[None], self.space)
        return float(loss), part

    def _count(self, number: int) -> float:
        """Count what a candidate has cost, and return its loss."""
        loss, part = self._running.pop(number).result()
        self.ledger.add(part)
        return loss

    def _leave(self) -> None:
        """Count what a search that ends before its budget has still under way: it was paid for, and is not used."""
        if self._recall_left() or not self._running:
            return
        self._threads.shutdown(wait=True, cancel_futures=True)
        for number in [number for number, one in self._running.items() if not one.cancelled()]:
            self._count(number)
        self._append("left")

    def _recall_left(self) -> bool:
        """Recall what an earlier end of the search had left under way; whether there was any."""
        if self.recorded != "left":
            return False
        recorded = self.log.recall("left")
        assert recorded is not None, "it was looked at just now"
        self.ledger.restore(recorded["ledger"])
        return True
