"""The scorer of a task is chosen here by what the task is scored by."""

from collections.abc import Sequence

from bbt.backend import Backend
from bbt.scoring.ledger import Ledger
from bbt.scoring.likelihood import LikelihoodScorer
from bbt.scoring.scorer import Scorer
from bbt.scoring.targets import TargetScorer
from bbt.settings import ScoredBy
from bbt.tasks import Example, Task
from bbt.types import Prompts


def scorer_of(
    backend: Backend, task: Task, examples: Sequence[Example], ledger: Ledger, anchor: Prompts | None = None
) -> Scorer:
    """Make the scorer of the rows of one split of a task, of the kind that the task is scored by; `anchor` is the one
    of `Scorer`."""
    return _KINDS[task.scored_by](backend, task, examples, ledger, anchor)


_KINDS: dict[ScoredBy, type[Scorer]] = {
    "label_words": Scorer,
    "likelihood": LikelihoodScorer,
    "mean_likelihood": LikelihoodScorer,
    "generation": TargetScorer,
}
