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

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # workers inherit it
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
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def until(ready, seconds=60):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.05)
