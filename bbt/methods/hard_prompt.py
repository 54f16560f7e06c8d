"""Black-Box Tuning for models that take text only: p0 + A z, rounded to the nearest words."""

from dataclasses import dataclass, replace

import numpy as np

from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.hard_search import HardMethod, HardSearch
from bbt.methods.prompt_search import drawn_space, schedule
from bbt.optimizers import Optimizer, make_optimizer
from bbt.runs.estimate import PlannedQueries
from bbt.settings import BudgetConfig, HardPromptConfig, ObjectiveConfig, OptimizerConfig, SelectionConfig
from bbt.spaces.hard import RoundedSpace, readable_ids
from bbt.spaces.initial import initial_prompts, n_screened
from bbt.spaces.rounding import Rule, Similarity, rounded
from bbt.types import Prompts


class HardPromptTuning(HardMethod):
    """The search of Black-Box Tuning, whose prompts are rounded to words before they are scored."""

    prompt: HardPromptConfig = HardPromptConfig()
    """The prompt's length, its start p0, and the space around it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What proposes candidates."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The training loss."""
    budget: BudgetConfig = BudgetConfig()
    """How many queries there are, and when dev judges."""
    selection: SelectionConfig = SelectionConfig()
    """What dev judges, and by what."""
    metric: Similarity = "cosine"
    """What near means: the cosine between a prompt token and a word's embedding, or their distance (l2)."""
    rounding: Rule = "nearest"
    """The rule by which prompt tokens take their words: see `bbt.spaces.rounding.rounded`."""

    def plan(self, references: bool) -> PlannedQueries:
        """The queries of the soft search, at most. Prompts that round to the same words are scored once, so there may
        be fewer."""
        plan = schedule(self, (self.budget.queries,)).plan(n_screened(self.prompt), references)
        return replace(plan, n_prompt_tokens=self.prompt.n_prompt_tokens, in_words=True)

    def train(self, experiment: Experiment) -> Trained:
        """Search over z; what is scored, kept and returned are words."""
        return RoundedSearch(experiment, self).run()


@dataclass
class RoundedSearch(HardSearch):
    """The search over z, whose prompts are rounded to words."""

    settings: HardPromptTuning
    """The method's settings."""

    def _initial(self) -> Prompts:
        """The word embeddings (1, T, H) of the initial prompt's nearest words, screened where that is asked for."""
        e, s = self.experiment, self.settings
        self._ids = np.array(readable_ids(e.backend))
        self._words = e.backend.embed_ids(self._ids.tolist())[0]
        soft = initial_prompts(s.prompt, e.backend, e.task, e.split.train, e.seed)
        hard = self._ids[rounded(soft, self._words, s.metric, s.rounding, e.seed)]
        return e.backend.embed_ids(self._screened(hard)[0].tolist())

    def _space(self) -> RoundedSpace:
        e, s = self.experiment, self.settings
        soft = drawn_space(self._p0, s.prompt, s.optimizer.sigma0, e.seed, e.backend.info.embedding_std)
        return RoundedSpace(soft, self._ids, self._words, s.metric, s.rounding, e.seed)

    def _optimizer(self) -> Optimizer:
        settings = self._optimizer_settings(self.space.intrinsic_dim, self.experiment.seed)
        return make_optimizer(self.settings.optimizer.name, settings)

    @property
    def _n_screened(self) -> int:
        return n_screened(self.settings.prompt)
