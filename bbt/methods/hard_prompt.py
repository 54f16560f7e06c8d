"""Black-Box Tuning for models that take text only: p0 + A z, rounded to the nearest words."""

from dataclasses import dataclass

import numpy as np

from bbt.config import Config
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.black_box import BlackBox
from bbt.methods.hard_search import HardMethod, HardSearch
from bbt.runs.estimate import Plan
from bbt.spaces.hard import RoundedSpace, readable_ids
from bbt.spaces.initial import initial_prompts
from bbt.spaces.rounding import Metric, Rule, rounded
from bbt.types import Prompts


class HardPromptTuning(HardMethod):
    """`metric` is the distance between a prompt token and the words, `rounding` the rule
    (`bbt.spaces.rounding.rounded`); the other settings are the config's own sections, as those of black-box."""

    metric: Metric = "cosine"
    rounding: Rule = "nearest"

    def plan(self, config: Config) -> Plan:
        """Those of the soft search; prompts that round to the same words are scored once, so there may be fewer."""
        return BlackBox().plan(config)

    def train(self, experiment: Experiment) -> Trained:
        """Search over z; what is scored, kept and returned are words."""
        return RoundedSearch(experiment, self).run()


@dataclass
class RoundedSearch(HardSearch):
    """Black-Box Tuning whose prompts are rounded before they are scored."""

    method: HardPromptTuning

    def _initial(self) -> Prompts:
        """Word embeddings of the initial prompt's nearest words, screened where asked for."""
        e, c, m = self.experiment, self.experiment.config, self.method
        self._ids = np.array(readable_ids(e.backend))
        self._words = e.backend.embed_ids(self._ids.tolist())[0]
        soft = initial_prompts(c.prompt, e.backend, e.task, c.seed)
        hard = self._ids[rounded(soft, self._words, m.metric, m.rounding, c.seed)]
        return e.backend.embed_ids(self._screened(hard)[0].tolist())

    def _space(self) -> RoundedSpace:
        e, m, seed = self.experiment, self.method, self.experiment.config.seed
        soft = self._subspace(self._p0, seed, e.backend.info.embedding_std)
        return RoundedSpace(soft, self._ids, self._words, m.metric, m.rounding, seed)
