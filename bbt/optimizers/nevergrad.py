"""Any optimizer of nevergrad's registry, by its name there (DE, PSO, TwoPointsDE, NGOpt, ...)."""

import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bbt.errors import ConfigError, unknown
from bbt.optimizers.base import OwnGenerator, Settings
from bbt.types import Latents, Losses


class Nevergrad:
    """A nevergrad optimizer over an array of mutation scale sigma0, asked for whole populations.

    Raises:
        ConfigError: no optimizer of that name (the nearest is suggested), or one that cannot be used here.
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
        self._population_size = settings.population_size
        self._generator = OwnGenerator(settings.seed)  # many of its optimizers draw from the global one
        try:
            with self._generator:
                self._optimizer = ng.optimizers.registry[name](
                    parametrization=space, budget=settings.budget, num_workers=settings.population_size
                )
        except Exception as error:  # one that cannot work in parallel, or misses a package of its own
            raise ConfigError(f"nevergrad's {name} cannot search whole populations here: {error}") from error
        self._asked: list[Any] = []

    def _space(self, ng: Any, settings: Settings) -> Any:
        """nevergrad's description of what is searched."""
        array = ng.p.Array(shape=(settings.intrinsic_dim,)).set_mutation(sigma=settings.sigma0)
        return array.set_bounds(*settings.bounds) if settings.bounds else array

    def ask(self) -> Latents:
        """The next population (n, d)."""
        with self._generator:
            self._asked = [self._optimizer.ask() for _ in range(self._population_size)]
        return np.array([candidate.value for candidate in self._asked])

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Losses of the candidates last asked for, in order."""
        with warnings.catch_warnings(), self._generator:
            warnings.simplefilter("ignore")  # about the inner workings of its optimizers; nothing to act on
            for candidate, loss in zip(self._asked, losses, strict=True):
                self._optimizer.tell(candidate, float(loss))

    @property
    def mean(self) -> NDArray[np.float64]:
        """(d,) nevergrad's own recommendation."""
        with self._generator:
            return np.array(self._optimizer.provide_recommendation().value)


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


def _nevergrad() -> Any:
    with warnings.catch_warnings(), OwnGenerator(0):  # it draws some optimizers' constants when it is imported
        warnings.simplefilter("ignore")  # optional packages that nevergrad misses while filling its registry
        import nevergrad

    return nevergrad
