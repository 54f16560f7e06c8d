"""The bench measures how fast a model scores prompts: against plain transformers, and against what the chip can do."""

from backends.bench.measure import measure
from backends.bench.table import table
from backends.bench.workload import Workload

__all__ = ["Workload", "measure", "table"]
