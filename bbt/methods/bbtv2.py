"""BBTv2 (arXiv 2205.11200): a prompt for every layer, searched layer by layer from bottom to top.

Layer i's hidden states at the prompt's places are moved by A_i z_i. A generation tunes one layer; what stands below
it is the same for all candidates, so that the backend computes it once.
"""

import numpy as np

from bbt.backend import DeepBackend, require
from bbt.errors import ConfigError
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.black_box import SearchMethod
from bbt.methods.prompt_search import SoftSearch, drawn_space
from bbt.optimizers import Optimizer, make_optimizer
from bbt.optimizers.layerwise import Layerwise
from bbt.spaces.deep import DeepSpace


class BBTv2(SearchMethod):
    """The search of BBTv2. Its settings are those of Black-Box Tuning, with `intrinsic_dim` and `population_size` for
    each layer."""

    def train(self, experiment: Experiment) -> Trained:
        """Search until the budget is spent; dev chooses among the candidates it has judged."""
        require(experiment.backend, DeepBackend)
        return DeepSearch(experiment, self).run()


class DeepSearch(SoftSearch):
    """Black-Box Tuning over deep prompts: it has another space, and an optimizer that takes the layers in turn."""

    def _space(self) -> DeepSpace:
        """Make the space: layer 0's is that of Black-Box Tuning; above it p0 is zero, and A is scaled by how wide the
        layer's hidden states spread."""
        seed, above = self.experiment.seed, np.zeros_like(self._p0)
        layers = [
            drawn_space(above if i else self._p0, self.settings.prompt, self._sigma0, _layer_seed(seed, i), std)
            for i, std in enumerate(self._hidden_stds())
        ]
        return DeepSpace(tuple(layers))

    def _hidden_stds(self) -> list[float]:
        """The spreads (L,) of the hidden states on the training rows under p0, recalled or measured. Measuring costs
        one query."""
        e = self.experiment
        recorded = e.log.recall("hidden_stds")
        if recorded:
            e.ledger.restore(recorded["ledger"])
            return [float(std) for std in recorded["stds"]]
        deep = np.zeros((1, e.backend.info.n_layers, *self._p0.shape[1:]), np.float32)
        deep[:, 0] = self._p0
        stds = require(e.backend, DeepBackend).hidden_stds(deep, self.train.encoded(deep.shape[-2])).tolist()
        e.ledger.train_queries += 1
        e.ledger.examples += len(e.split.train)
        e.log.append({"event": "hidden_stds", "stds": stds, "ledger": e.ledger.snapshot()})
        return [float(std) for std in stds]

    def _optimizer(self) -> Optimizer:
        c, n_layers = self.settings, self.experiment.backend.info.n_layers
        d, seeds = c.prompt.intrinsic_dim, [_layer_seed(self.experiment.seed, i) % 2**32 for i in range(n_layers)]
        return Layerwise([make_optimizer(c.optimizer.name, self._optimizer_settings(d, seed)) for seed in seeds])

    @property
    def _n_screened(self) -> int:
        """The queries that are spent on p0; measuring the hidden states' spreads is one of them."""
        return super()._n_screened + 1

    @property
    def _round(self) -> int:
        """The queries of a generation in each layer."""
        return self.settings.optimizer.population_size * self.experiment.backend.info.n_layers

    def _check_budget(self) -> None:
        """Refuse a budget that holds no round through the layers.

        Raises:
            ConfigError: it is less than a round.
        """
        budget, population = self.settings.budget.queries, self.settings.optimizer.population_size
        if budget < self._n_screened + self._round:
            raise ConfigError(
                f"budget.queries {budget} is less than one round of bbtv2: {self._n_screened} to begin with and "
                f"{self._round} (population_size {population} x {self._round // population} layers)."
            )

    def _budgets(self) -> tuple[int, ...]:
        """The budgets as whole rounds through the layers, G = budget // (population * L) as in the released code. What
        screening and measuring cost is taken off first."""
        spent = self._n_screened
        return tuple(spent + (budget - spent) // self._round * self._round for budget in super()._budgets())


def _layer_seed(seed: int, layer: int) -> int:
    """The seed of a layer's draws: the run's own for layer 0, and another for every layer above it."""
    return seed + layer * (2**32 + 7919)
