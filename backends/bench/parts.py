"""Where the time of scoring goes, by PyTorch's profiler and the names that `backends.local` gives its work."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from backends.bench.evaluation import Evaluation


def scoring_shares(work: Callable[[], Evaluation], device: torch.device) -> dict[str, float]:
    """Shares of the scoring's seconds that go into embedding (rows and prompts put together), trunk and head.

    Only one evaluation is watched, because watching slows it down: shares suffer less from that than seconds. On a
    GPU they are of its own seconds.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says when it starts and stops, on standard error
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        done = work()
    field = "device_time_total" if on_gpu else "cpu_time_total"
    spent = {event.key: getattr(event, field) / 1e6 for event in profiler.key_averages()}
    embedding, model, trunk = (spent.get(f"bbt.{name}", 0.0) for name in ("embedding", "model", "trunk"))
    return {
        part: seconds / done.seconds["scoring"]
        for part, seconds in {"embedding": embedding, "trunk": trunk, "head": model - trunk}.items()
    }
