"""What a Ray cluster costs, in figures: python examples/ray_scaling.py [PART ...] [--actors N ...] [--plan FILE]

The parts, all of which are measured where none is named:
  efficiency    actors of a fixed latency a share: how much of their time they work, and the overhead of a query
  memory        the driver's memory over 100,000 scored candidates
  death         a node is killed in mid-generation: the time from its death to the last answer
  asynchronous  actors of unequal speed: generations that wait for all, against generations that wait for none
  table         a plan's runs on two Ray nodes, against two local workers: wall clock, and whether the results are equal

The efficiency is that of one machine's processes; between machines the network's delay comes to it. Every figure is
measured with the load that the machine has, which is printed: an idle machine gives better ones.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from backends import load_backend
from bbt.testing import ToyBackend

HERE = Path(__file__).resolve().parent
TINY = {"cpu": 0.01}
"""What an actor that only waits asks for."""


class Fixed(ToyBackend):
    """A model that takes a fixed time over each share. Of the processes that hold it the first `n_slow` take `factor`
    times as long; they are told apart by files in the folder `names`."""

    def __init__(
        self, model: str = "toy", seconds: float = 0.05, n_slow: int = 0, factor: float = 1.0, names: str = ""
    ) -> None:
        super().__init__(model, target=0.3)
        self.seconds = seconds * (factor if any(self._takes(Path(names) / str(i)) for i in range(n_slow)) else 1.0)

    def _takes(self, name: Path) -> bool:
        try:
            name.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def label_scores(self, prompts: Any, encoded: Any) -> Any:
        """Score after a while."""
        time.sleep(self.seconds)
        return super().label_scores(prompts, encoded)


@contextmanager
def cluster(*n_cpus: int) -> Iterator[Any]:
    """A cluster of nodes with these numbers of CPUs on this machine, which this process joins; its head works on
    nothing."""
    import ray
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 200 * 2**20}
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    # Workers inherit both; by Ray's default of 15 they would yield to all else on a machine that is shared.
    os.environ.update({"PYTHONPATH": path, "RAY_worker_niceness": "0"})
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        made.nodes = [made.add_node(num_cpus=n, **store) for n in n_cpus]
        ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def crew(actors: int, **options: Any) -> Any:
    """A backend of actors, all of which are ready."""
    backend = load_backend("ray", model="toy", actors=actors, actor=TINY, backend="ray_scaling:Fixed", **options)
    while backend.n_ready < actors:
        time.sleep(0.1)
    return backend


def rows_of(backend: Any) -> Any:
    """32 rows, encoded."""
    from bbt.tasks import Example, Task, Template

    task = Task("toy", Template("{prompt} {text} {mask}"), ("no", "yes"), ("no", "yes"))
    return backend.encode(task.rows([Example(str(i / 8), 1) for i in range(32)], 2), task.label_words)


def population(n: int) -> Any:
    """Candidates (n, 2, 4)."""
    return np.random.default_rng(0).standard_normal((n, 2, 4)).astype(np.float32)


def seconds_of(backend: Any, encoded: Any, n: int) -> tuple[float, float]:
    """The wall-clock and the driver's CPU seconds that n candidates take, in shares of one."""
    start, cpu = time.perf_counter(), time.process_time()
    backend.label_scores(population(n), encoded)
    return time.perf_counter() - start, time.process_time() - cpu


def efficiency(sizes: list[int], latencies: list[int]) -> None:
    """Print how much of their time actors work."""
    print("\n| ms a share | actors | shares | efficiency | overhead a query (ms) | driver's CPU a query (ms) |")
    print("|---|---|---|---|---|---|")
    with cluster(2):
        for milliseconds in latencies:
            for actors in sizes:
                backend = crew(actors, seconds=milliseconds / 1000)
                encoded = rows_of(backend)
                n = actors * max(4, 1500 // milliseconds)
                seconds_of(backend, encoded, 2 * actors)  # everybody has met the rows
                found = [seconds_of(backend, encoded, n) for _ in range(3)]
                wall, cpu = (median(times) for times in zip(*found, strict=True))
                ideal = n * milliseconds / 1000 / actors
                over, own = 1000 * (wall - ideal) * actors / n, 1000 * cpu / n
                print(f"| {milliseconds} | {actors} | {n} | {ideal / wall:.1%} | {over:.2f} | {own:.2f} |", flush=True)
                backend.close()


def memory(n_candidates: int = 100_000) -> None:
    """Print the driver's resident memory as candidates are scored."""
    print("\n| scored candidates | driver's memory (MB) |\n|---|---|")
    with cluster(2):
        backend = crew(2, seconds=0.0, at_once=20)
        encoded, step = rows_of(backend), 1000
        for done in range(step, n_candidates + 1, step):
            backend.label_scores(population(step), encoded)
            if done in (step, n_candidates) or done % (n_candidates // 5) == 0:
                print(f"| {done:,} | {resident():.0f} |", flush=True)


def resident() -> float:
    """This process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def death(seconds: float = 0.5, actors: int = 8, n: int = 160) -> None:
    """Print how long the answers take when one of two nodes is killed after a quarter of them."""
    import threading

    with cluster(1, 1) as made:
        backend = crew(actors, seconds=seconds)
        encoded = rows_of(backend)
        whole, _ = seconds_of(backend, encoded, n)
        killed: list[float] = []

        def kill() -> None:
            made.remove_node(made.nodes[0], allow_graceful=False)
            killed.append(time.perf_counter())

        threading.Timer(whole / 4, kill).start()
        scores = backend.label_scores(population(n), encoded)
        after = time.perf_counter() - killed[0]
        toy = ToyBackend(target=0.3)
        equal = np.array_equal(scores, toy.label_scores(population(n), rows_of(toy)))
        print(f"\nA node dies: {n} candidates of {seconds} s on {actors} actors of two nodes take {whole:.1f} s.")
        print(f"With one node killed after {whole / 4:.1f} s, the last answer comes {after:.1f} s after its death ")
        print(f"(3/4 of the work is left; on half of the actors that is {1.5 * whole:.1f} s). Scores equal: {equal}.")


def asynchronous(actors: int = 8, n_slow: int = 2, factor: float = 8.0, queries: int = 256) -> None:
    """Print what a search finds in the same time with generations that wait for all, and for none."""
    from bbt import api
    from bbt.config import make_config
    from bbt.runs.log import EventLog

    found = {}
    with cluster(2), tempfile.TemporaryDirectory() as folder:
        for waits in (True, False):
            names = Path(folder) / f"names-{waits}"
            names.mkdir()
            fixed = {"backend": "ray_scaling:Fixed", "seconds": 0.1, "n_slow": n_slow, "factor": factor}
            options = {**fixed, "actors": actors, "actor": TINY, "names": str(names)}
            tree = {
                "name": f"run-{waits}",
                "model": {"backend": "ray", "name": "toy", "options": options},
                "evaluation": {"rows": 0},
                "objective": {"loss": "cross_entropy"},
                "calibration": "none",
                "prompt": {"n_prompt_tokens": 2, "intrinsic_dim": 8, "n_screened": 1, "tied": False, "alpha": 4},
                "optimizer": {"population_size": 12, "asynchronous": not waits},
                "budget": {"queries": queries, "dev_every": queries},
            }
            api.run(make_config(tree), folder)
            found[waits] = course(EventLog(Path(folder) / f"run-{waits}" / "events.jsonl").of("generation"))
    until = min(points[-1][0] for points in found.values())
    print(f"\n{actors} actors of 0.1 s a candidate, {n_slow} of them {factor:g} times slower; populations of 12.")
    print(f"\n| generations | seconds for {queries} queries | queries within {until:.1f} s | lowest loss by then |")
    print("|---|---|---|---|")
    for waits, points in found.items():
        done = [point for point in points if point[0] <= until]
        kind = "wait for all" if waits else "asynchronous"
        print(f"| {kind} | {points[-1][0]:.1f} | {done[-1][1]} | {min(point[2] for point in done):.4f} |")


def course(generations: list[dict[str, Any]]) -> list[tuple[float, int, float]]:
    """After each generation: the seconds since the first, until which the actors have been starting; the queries; and
    the lowest loss of the generation."""
    begin = generations[0]["ledger"]["seconds"]
    ledgers = [(one["ledger"], one["losses"]) for one in generations]
    return [(ledger["seconds"] - begin, ledger["train_queries"], min(losses)) for ledger, losses in ledgers]


def table(plan: Path, first: int) -> None:
    """Print how long a plan's first runs take on two Ray nodes and with two local workers."""
    from bbt.compare.cluster import RayCluster
    from bbt.compare.finished import read
    from bbt.compare.plan import cells, load_plan
    from bbt.compare.processes import Processes
    from bbt.compare.work import Watcher, Work

    todo = cells(load_plan(plan))[:first]
    with tempfile.TemporaryDirectory() as folder, cluster(1, 1):
        seconds, results = {}, {}
        for name, executor in (("two local workers", Processes(2)), ("two Ray nodes", RayCluster())):
            runs, start = Path(folder) / name, time.perf_counter()
            failures = Work(runs, executor, Watcher()).do(todo)
            seconds[name] = time.perf_counter() - start
            done = [read(cell, runs) for cell in todo]
            results[name] = [(one.result["test"], one.result["selected"]) if one else None for one in done]
            print(
                f"{name}: {len(todo)} runs of {plan.name} in {seconds[name]:.1f} s, {len(failures)} failed", flush=True
            )
        local, there = seconds.values()
        equal = results["two local workers"] == results["two Ray nodes"]
        print(f"Ray takes {there / local:.2f} of the local wall clock. Results equal: {equal}.")


def main() -> None:
    parts = ("efficiency", "memory", "death", "asynchronous", "table")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="what is measured (none: all)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--latencies", type=int, nargs="+", default=[50, 500], help="milliseconds a share")
    parser.add_argument("--plan", type=Path, default=HERE / "plans" / "table.yaml")
    parser.add_argument("--first", type=int, default=24, help="how many runs of the plan are made")
    given = parser.parse_args()
    chosen = given.parts or parts
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} CPUs, load {load} (1, 5 and 15 minutes) before anything is measured.")
    if "efficiency" in chosen:
        efficiency(given.actors, given.latencies)
    if "memory" in chosen:
        memory()
    if "death" in chosen:
        death()
    if "asynchronous" in chosen:
        asynchronous()
    if "table" in chosen:
        table(given.plan, given.first)


if __name__ == "__main__":
    main()
