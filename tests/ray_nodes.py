"""Ray clusters of several nodes on one machine."""

import logging
import os
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY = 2 * 2**30
"""The memory that a node offers: what runs ask for is counted and not measured."""


def add_node(cluster, memory=MEMORY, **wanted):
    return cluster.add_node(**{"num_cpus": 2, "memory": memory, "object_store_memory": 100 * 2**20, **wanted})


@contextmanager
def started(ray):
    from ray.cluster_utils import Cluster

    # What workers inherit: where the tests are, a priority like this process has (by default they have less), and that
    # an idle one stays (by default it ends after a second, and a slow machine needs longer for the next run).
    wanted = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "RAY_worker_niceness": "0",
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20},
    )
    try:
        for _ in range(2):
            add_node(cluster)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        with warnings.catch_warnings():
            # Ray leaves the handles of its processes' log files, and of processes that it has killed, to the collector.
            warnings.simplefilter("ignore", ResourceWarning)
            ray.shutdown()
            cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def until(ready, seconds=60):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.05)
