"""A task: templates and label words for masked and for causal LMs. Its rows are given under `data` in a config."""

from bbt.tasks import TaskSpec
from bbt.tasks.builtin import Wording

TONE = TaskSpec(
    "tone of a review",
    label_names=("negative", "positive"),
    masked=Wording("{prompt} . {text} It sounded {mask} .", ("bad", "great")),
    causal=Wording("{prompt} . {text} It sounded {mask}", ("bad", "great")),
    hub=None,
)
