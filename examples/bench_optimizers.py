"""Milliseconds of ask and tell a generation, and peak memory, of our optimizers by dimension.

Population 20 on a quadratic. Full CMA-ES is left out where it refuses.
"""

import time
import tracemalloc

import numpy as np

from bbt.errors import ConfigError
from bbt.optimizers import OPTIMIZERS, Settings, make_optimizer

GENERATIONS = 10


def milliseconds(name: str, d: int) -> list[float]:
    """[median, minimum, maximum] over the generations."""
    optimizer, spent = make_optimizer(name, Settings(d)), []
    for _ in range(GENERATIONS):
        start = time.perf_counter()
        latents = optimizer.ask()
        asked = time.perf_counter()
        losses = np.square(latents).sum(axis=1)
        scored = time.perf_counter()
        optimizer.tell(latents, losses)
        spent.append(1e3 * (asked - start + time.perf_counter() - scored))
    return [float(np.median(spent)), min(spent), max(spent)]


def megabytes(name: str, d: int) -> float:
    """Peak of what one generation allocates."""
    tracemalloc.start()
    optimizer = make_optimizer(name, Settings(d))
    latents = optimizer.ask()
    optimizer.tell(latents, np.square(latents).sum(axis=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    print("optimizer           d   ms a generation (median, min to max)    MB")
    for name in OPTIMIZERS:
        make_optimizer(name, Settings(10))  # whatever is imported
        for d in (500, 2_000, 10_000, 50_000):
            try:
                median, low, high = milliseconds(name, d)
            except ConfigError as error:
                print(f"{name:14} {d:7}   {error}", flush=True)
                continue
            print(f"{name:14} {d:7} {median:9.2f} ({low:.2f} to {high:.2f}) {megabytes(name, d):20.1f}", flush=True)


if __name__ == "__main__":
    main()
