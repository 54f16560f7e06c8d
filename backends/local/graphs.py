"""Evaluations of a constant shape become CUDA graphs: all their kernels are launched at once, so that a GPU does not
wait for Python. A graph gives the numbers that its evaluation gives."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Compute = Callable[[Tensor], Tensor]
"""From candidates' vectors (n, L, T, H) to scores (n, B, K), without a step that the host waits for."""

AFTER = 2
"""How often an evaluation is made before it becomes a graph: what is asked for once or twice is not worth it."""
MOST = 4
"""How many graphs are held at a time: training rows, content-free rows, and dev rows under a few candidates."""


@dataclass(frozen=True)
class Recorded:
    """A recorded evaluation."""

    rows: Any
    """The rows that it is of. They are held so that their identity stays theirs."""
    given: Tensor
    """Where it reads the vectors."""
    found: Tensor
    """Where it leaves the scores. Other graphs write there too: read it before the next one runs."""
    replay: Callable[[], None]
    """What runs it."""
    memory: Any
    """The memory and the stream that it shares with further graphs."""
    reads: Any
    """What else it reads, held so that it stays where it is."""


class Graphs:
    """The graphs of one evaluator. One runs at a time, whatever thread asks, since they share their memory.

    The first two evaluations of a shape are made step by step. The third warms up (once more step by step, on a stream
    of its own: as long as one generation, and its scores are not used) and is recorded, which takes the host a fraction
    of a second. Where that fails, a warning says so and everything goes on step by step.
    """

    def __init__(self) -> None:
        self.enabled = True
        self._held: dict[Hashable, Recorded] = {}
        self._asked: Counter[Hashable] = Counter()
        self._memory: Any = None
        self._turn = threading.Lock()

    def scores(self, rows: Any, budget: int, vectors: Tensor, compute: Compute) -> Tensor:
        """The scores (n, B, K) on the host, through a graph where there is one."""
        if not self.enabled:
            return compute(vectors).cpu()
        with self._turn:
            key = (id(rows), budget, tuple(vectors.shape))
            held = self._held.get(key) or self._recorded_in_time(key, rows, vectors, compute)
            if held is None:
                return compute(vectors).cpu()
            held.given.copy_(vectors)
            held.replay()
            return held.found.cpu()

    def clear(self) -> None:
        """Let go of all graphs and their memory, and record none until they have been asked for anew."""
        self._held.clear()
        self._asked.clear()
        self._memory = None

    def _recorded_in_time(self, key: Hashable, rows: Any, vectors: Tensor, compute: Compute) -> Recorded | None:
        """Record an evaluation that has been asked for often enough; the graph that was recorded first goes for it."""
        self._asked[key] += 1
        if self._asked[key] <= AFTER:
            return None
        try:
            found = recorded(rows, vectors, compute, self._memory)
        except RuntimeError as error:
            self.enabled = False
            self.clear()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("evaluations go on step by step, for they cannot become a CUDA graph: %s", reason)
            return None
        self._memory = found.memory
        while len(self._held) >= MOST:
            self._asked.pop(oldest := next(iter(self._held)))
            del self._held[oldest]
        self._held[key] = found
        return found


def recorded(rows: Any, vectors: Tensor, compute: Compute, memory: Any) -> Recorded:
    """Record an evaluation as a CUDA graph, in the memory of other graphs if there is one.

    Raises:
        RuntimeError: it waits for the host somewhere, or there is no memory for it.
    """
    # The outer stream is the one that is current: a recording that fails leaves its own behind.
    with torch.cuda.device(vectors.device), torch.cuda.stream(torch.cuda.current_stream(vectors.device)):
        pool, aside = memory = memory or (torch.cuda.graph_pool_handle(), torch.cuda.Stream())  # type: ignore[no-untyped-call]
        given, reads = vectors.clone(), (list(rows.plans.values()), compute)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute(given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            found = compute(given)
    return Recorded(rows, given, found, graph.replay, memory, reads)
