"""Tasks: a template, label words or a target, a metric and rows."""

from bbt.tasks.builtin import TASKS, TaskSpec, task_spec
from bbt.tasks.data import Split
from bbt.tasks.examples import Columns, Example
from bbt.tasks.generation import GENERATION_TASKS, GenerationTask
from bbt.tasks.metrics import METRICS
from bbt.tasks.task import Task
from bbt.tasks.template import Template

__all__ = [
    "GENERATION_TASKS",
    "METRICS",
    "TASKS",
    "Columns",
    "Example",
    "GenerationTask",
    "Split",
    "Task",
    "TaskSpec",
    "Template",
    "task_spec",
]
