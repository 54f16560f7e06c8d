"""Where the time of scoring goes, by PyTorch's profiler and the names that `backends.local` gives its work."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def scoring_parts(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Seconds in embedding (rows and prompts put together), trunk and head; on a GPU its own seconds."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says when it starts and stops, on standard error
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        work()
    field = "device_time_total" if on_gpu else "cpu_time_total"
    spent = {event.key: getattr(event, field) / 1e6 for event in profiler.key_averages()}
    model, trunk = spent.get("bbt.model", 0.0), spent.get("bbt.trunk", 0.0)
    return {"embedding": spent.get("bbt.embedding", 0.0), "trunk": trunk, "head": model - trunk}
