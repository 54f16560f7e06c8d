"""Linear algebra whose last bits do not depend on the number of threads.

NumPy's BLAS shares a product or an eigendecomposition out among its threads and adds the parts up in another order
for another number of them. An optimizer carries such a difference on and makes another trajectory of it: a run that
is resumed on a machine with more cores would not ask for the candidates that it asked for before.
"""

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS works with one thread, whatever the machine and `OMP_NUM_THREADS` say."""
    return _controller().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


@cache
def _controller() -> ThreadpoolController:
    """Make the controller of the libraries that are loaded now, NumPy's own among them."""
    return ThreadpoolController()
