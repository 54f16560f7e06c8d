"""The peak memory of a piece of work is measured here."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_mb(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """The MB in use before `work` and at its peak: PyTorch's allocations on a GPU, the resident set on a CPU.

    Linux lets a process reset its peak resident set; elsewhere it is the peak since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
        work()
        return before, torch.cuda.max_memory_allocated(device) / 1e6
    if not _CLEAR.exists():
        work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        return peak, peak
    _CLEAR.write_text("5")  # resets VmHWM: see proc(5)
    before = _status_mb("VmRSS")
    work()
    return before, _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6
