"""What several tests share on top of `bbt.testing.ToyBackend`."""

from collections.abc import Sequence

from bbt.config import SECTIONS, make_config
from bbt.scoring.ledger import Ledger
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task, Template
from bbt.testing import ToyBackend

TASK = Task("toy", Template("{prompt} {text} {mask}"), ("no", "yes"), ("no", "yes"))


def toy_scorer(backend: ToyBackend, difficulties: Sequence[float], ledger: Ledger) -> Scorer:
    """Rows of these difficulties, all of label 1."""
    return Scorer(backend, TASK, [Example(str(d), 1) for d in difficulties], ledger)


def shared_config(tree):
    """A config whose sections are shared by several methods: each takes what it reads."""
    sections = {key: value for key, value in tree.items() if key in SECTIONS}
    return make_config({key: value for key, value in tree.items() if key not in SECTIONS}, sections)
