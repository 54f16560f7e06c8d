"""The scorer that a task is scored by."""

from collections.abc import Sequence

from bbt.backend import Backend
from bbt.scoring.ledger import Ledger
from bbt.scoring.likelihood import LikelihoodScorer
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task
from bbt.types import Prompts


def scorer_of(
    backend: Backend, task: Task, examples: Sequence[Example], ledger: Ledger, anchor: Prompts | None = None
) -> Scorer:
    """The rows of one split of this task, as it is scored; `anchor` as in `Scorer`."""
    kind = Scorer if task.scored_by == "label_words" else LikelihoodScorer
    return kind(backend, task, examples, ledger, anchor)
