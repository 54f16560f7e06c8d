"""Fixtures that several files share: tiny models on disk, backends over them, and their references."""

import os
from contextlib import ExitStack

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may wait for a network
# Before torch is: the models are too small for a second thread, and threads that wait for a core others use are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache
from pathlib import Path

import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    """What joins a cluster of several nodes carries the mark by which it is left out, or run alone."""
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """name -> folder of a tiny model of that architecture, made once."""
    from tiny_models import save_tiny

    root: Path = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: save_tiny(name, root / name))


@pytest.fixture
def tiny_backend(tiny_folder):
    """name -> a fresh LocalBackend over the tiny model, in full precision unless told otherwise."""
    from tiny_models import DEVICE

    from backends.local import LocalBackend

    def make(name, **options):
        return LocalBackend(model=str(tiny_folder(name)), **{"precision": "fp32", "device": DEVICE, **options})

    return make


@pytest.fixture
def nothing_packed(monkeypatch):
    """Backends made from now on go the slow way, as for a model that takes no packed rows."""

    def refuse(*_):
        raise NotImplementedError("no packed rows")

    monkeypatch.setattr("backends.local.check.packed_trunk", refuse)


@pytest.fixture(scope="session")
def reference(tiny_folder):
    """name -> the same tiny model in plain transformers."""
    from reference import Reference
    from tiny_models import kind_of

    return cache(lambda name: Reference(tiny_folder(name), kind_of(name)))


@pytest.fixture
def random_prompts():
    """(n, T, H) prompts of about the size of the tiny models' embeddings, the same at every call."""

    def make(n, n_tokens, hidden_size=32, scale=0.2, seed=0):
        rng = np.random.default_rng(seed)
        return (scale * rng.standard_normal((n, n_tokens, hidden_size))).astype(np.float32)

    return make


@pytest.fixture
def serve(reference):
    """name, settings -> a peer that serves the tiny model of that name as vLLM does."""
    from vllm_peer import make_peer, serving

    with ExitStack() as stack:
        yield lambda name="gpt2", **settings: stack.enter_context(serving(make_peer(reference(name), **settings)))


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster of two nodes of two CPUs each on this machine, beside a head that works on nothing, which this
    process has joined."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray_nodes import started

    with started(ray) as cluster:
        yield cluster
