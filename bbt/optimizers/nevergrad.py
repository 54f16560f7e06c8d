"""Any optimizer of nevergrad's registry, by its name there (DE, PSO, TwoPointsDE, NGOpt, ...).

Three things of nevergrad are put right here:
- its CMA family gives pycma generations of a size of its own, 4 + 3 ln d or more, so that whole populations of ours
  do not end where pycma's do. From 300 dimensions on pycma adapts its step size by TPA, which fails at that; it is
  held to CSA, its rule below;
- some of its optimizers run in a background thread that waits for losses. It is made a daemon: a process that ends
  does not wait for it;
- what goes wrong inside an optimizer is an error that names it.
"""

import difflib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbt.blas import one_thread
from bbt.drawing import import_matplotlib
from bbt.errors import ConfigError, unknown
from bbt.optimizers.base import OwnGenerator, Settings
from bbt.optimizers.cma import pycma
from bbt.types import Latents, Losses


class Nevergrad:
    """A nevergrad optimizer over an array of mutation scale sigma0, asked for whole populations.

    Raises:
        ConfigError: no optimizer of that name (the nearest is suggested), or one that cannot be used here; also from
            `ask`, `tell` and `mean`, where the optimizer itself fails.
    """

    def __init__(self, name: str, settings: Settings, also_valid: Sequence[str] = ()) -> None:
        ng = _nevergrad()
        if name not in ng.optimizers.registry:
            known = {key.lower(): key for key in registry_names()}
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f" Did you mean {known[near[0]]!r}?" if near else ""
            raise ConfigError(
                unknown("optimizer", name, also_valid) + f"{hint} Or any of nevergrad's {len(known)} names."
            )
        space = self._space(ng, settings)
        space.random_state = np.random.RandomState(settings.seed)
        self._name, self._population_size = name, settings.population_size
        self._generator = OwnGenerator(settings.seed)  # many optimizers draw from NumPy's global one
        self._asked: list[Any] = []
        with self._inside("cannot search whole populations here"):  # it is asked for one population after the other
            self._optimizer = ng.optimizers.registry[name](
                parametrization=space, budget=settings.budget, num_workers=settings.population_size
            )

    def _space(self, ng: Any, settings: Settings) -> Any:
        """nevergrad's description of what is searched."""
        array = ng.p.Array(shape=(settings.intrinsic_dim,)).set_mutation(sigma=settings.sigma0)
        return array.set_bounds(*settings.bounds) if settings.bounds else array

    def ask(self) -> Latents:
        """The next population (n, d)."""
        with self._inside("failed when it was asked for candidates"):
            self._asked = [self._optimizer.ask() for _ in range(self._population_size)]
        return np.array([candidate.value for candidate in self._asked])

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Losses of the candidates last asked for, in order."""
        with self._inside("failed when it was told losses"):
            for candidate, loss in zip(self._asked, losses, strict=True):
                self._optimizer.tell(candidate, float(loss))

    @property
    def mean(self) -> NDArray[np.float64]:
        """The point (d,) that nevergrad itself recommends."""
        with self._inside("failed when it was asked for its recommendation"):
            return np.array(self._optimizer.provide_recommendation().value)

    @contextmanager
    def _inside(self, fault: str) -> Iterator[None]:
        """A context for the optimizer's own code: its randomness is the run's, its warnings are about inner workings
        that nobody can act on, and its error is one for people."""
        try:
            with warnings.catch_warnings(), one_thread(), self._generator, _csa_in_all_dimensions(), _daemon_threads():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = reason if len(reason) < 200 else reason[:200] + "..."
            raise ConfigError(
                f"nevergrad's {self._name} {fault} ({reason}). Choose another optimizer.name, e.g. cma-separable or "
                "TwoPointsDE; `bbt ls optimizers` lists them."
            ) from error


class NevergradChoices(Nevergrad):
    """A nevergrad optimizer over `intrinsic_dim` unordered choices among `n_choices`: latents (n, d) hold the number
    of each choice.

    Raises:
        ConfigError: as `Nevergrad`.
    """

    def __init__(self, name: str, settings: Settings, n_choices: int) -> None:
        self._n_choices = n_choices
        super().__init__(name, settings)

    def _space(self, ng: Any, settings: Settings) -> Any:
        return ng.p.Choice(range(self._n_choices), repetitions=settings.intrinsic_dim)


def registry_names() -> list[str]:
    """Every name in nevergrad's registry."""
    return sorted(str(name) for name in _nevergrad().optimizers.registry)


@contextmanager
def _csa_in_all_dimensions() -> Iterator[None]:
    """A context in which pycma adapts the step size by CSA where it has not been told how."""
    strategies = pycma().evolution_strategy
    before = strategies.TPA_dimension
    strategies.TPA_dimension = math.inf
    try:
        yield
    finally:
        strategies.TPA_dimension = before


@contextmanager
def _daemon_threads() -> Iterator[None]:
    """A context in which nevergrad's background threads are daemons, as if a daemon had started them."""
    from nevergrad.optimization import recaster

    class Daemon(recaster._MessagingThread):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.daemon = True

    before = recaster._MessagingThread
    recaster._MessagingThread = Daemon
    try:
        yield
    finally:
        recaster._MessagingThread = before


def _nevergrad() -> Any:
    with warnings.catch_warnings(), OwnGenerator(0):  # it draws some optimizers' constants when it is imported
        warnings.simplefilter("ignore")  # optional packages that nevergrad misses while filling its registry
        import_matplotlib()
        import nevergrad

    return nevergrad
