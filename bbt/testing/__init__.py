"""What your own tests need: a toy backend, and the contracts of backends, methods and their parts as functions.

    from bbt.testing import ToyBackend, check_backend

    def test_my_backend_keeps_the_contract():
        check_backend(MyBackend("my-model"), label_words=("bad", "great"))

Each `check_...` raises an AssertionError that says in a sentence what is broken, and returns nothing. Our own tests
call them for every part in our tables, so that a new one is tested by being named there.
"""

from bbt.testing.answers import GENERATION_CHECKS, TARGET_CHECKS, check_answers
from bbt.testing.backends import BACKEND_CHECKS, check_backend, check_reads_prompts_as_words
from bbt.testing.methods import check_method
from bbt.testing.optimizers import check_optimizer
from bbt.testing.parts import check_loss, check_metric, check_task
from bbt.testing.toy import ToyBackend, ToyRows

__all__ = [
    "BACKEND_CHECKS",
    "GENERATION_CHECKS",
    "TARGET_CHECKS",
    "ToyBackend",
    "ToyRows",
    "check_answers",
    "check_backend",
    "check_loss",
    "check_method",
    "check_metric",
    "check_optimizer",
    "check_reads_prompts_as_words",
    "check_task",
]
