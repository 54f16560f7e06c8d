"""Tasks: a template, label words, a metric and labelled rows."""

from bbt.tasks.builtin import TASKS, TaskSpec, task_spec
from bbt.tasks.data import Split
from bbt.tasks.examples import Columns, Example
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
    "task_spec",
]
