"""Tasks: a template, label words, a metric and labelled rows."""

from bbt.tasks.builtin import TASKS, TaskSpec, task_spec
from bbt.tasks.data import Columns, Example, Split, load_splits
from bbt.tasks.metrics import METRICS
from bbt.tasks.task import Task
from bbt.tasks.template import Template

__all__ = [
    "METRICS",
    "TASKS",
    "Columns",
    "Example",
    "Split",
    "Task",
    "TaskSpec",
    "Template",
    "load_splits",
    "task_spec",
]
