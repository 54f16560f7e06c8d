"""A discrete search over prompts of words: every prompt token is an unordered choice of a nevergrad optimizer."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from bbt.backend import HardBackend, require
from bbt.draws import stable_uniform
from bbt.errors import ConfigError
from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.hard_search import HardMethod, HardSearch
from bbt.methods.prompt_search import schedule
from bbt.optimizers.nevergrad import NevergradChoices
from bbt.runs.estimate import PlannedQueries
from bbt.settings import BudgetConfig, ObjectiveConfig, PopulationConfig, PromptLength, SelectionConfig
from bbt.spaces.hard import ChoiceSpace, readable_ids
from bbt.types import Prompts, TokenIds


class TokenSearch(HardMethod):
    """A search among few words, which is taken from black-box discrete prompt learning (Diao et al. 2023, arXiv
    2201.08531)."""

    prompt: PromptLength = PromptLength()
    optimizer: PopulationConfig = PopulationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: BudgetConfig = BudgetConfig()
    selection: SelectionConfig = SelectionConfig()
    algorithm: str = "DiscreteOnePlusOne"
    """nevergrad's name for what proposes candidates."""
    words: Literal["vocabulary", "training"] = "vocabulary"
    """Words drawn from the vocabulary by the seed, or the most frequent ones of the training texts."""
    n_words: int = Field(200, ge=2)
    """V, the words to choose from."""

    def plan(self, references: bool) -> PlannedQueries:
        """The queries of its loop; a prompt that comes again is scored once, so there may be fewer."""
        plan = schedule(self, (self.budget.queries,)).plan(0, references)
        return replace(plan, n_prompt_tokens=self.prompt.n_prompt_tokens, in_words=True)

    def train(self, experiment: Experiment) -> Trained:
        """Search over the words themselves."""
        return ChoiceSearch(experiment, self).run()


@dataclass
class ChoiceSearch(HardSearch):
    """The loop over choices of words."""

    settings: TokenSearch

    def _initial(self) -> Prompts:
        """Word embeddings of the first words to choose from: nothing is screened."""
        self._choices = ChoiceSpace(self._candidates(), self.settings.prompt.n_prompt_tokens)
        return self.experiment.backend.embed_ids(self._choices.p0[0].tolist())

    def _space(self) -> ChoiceSpace:
        return self._choices

    def _optimizer(self) -> NevergradChoices:
        settings = self._optimizer_settings(self._choices.intrinsic_dim, self.experiment.seed)
        return NevergradChoices(self.settings.algorithm, settings, len(self._choices.ids))

    def _candidates(self) -> TokenIds:
        """(V,) ids of the words to choose from."""
        e, n_words = self.experiment, self.settings.n_words
        readable = readable_ids(e.backend)
        if self.settings.words == "vocabulary":
            order = stable_uniform(e.seed, len(readable)).argsort(kind="stable")
            return np.array(readable)[order[:n_words]]
        read, words = require(e.backend, HardBackend).prompt_ids, set(readable)
        used = Counter(i for example in e.split.train for i in read(f"{example.text} {example.text_pair}"))
        ids = [i for i, _ in used.most_common() if i in words][:n_words]
        if len(ids) < 2:
            raise ConfigError("the training texts have no two words that are one token each; use words: vocabulary.")
        return np.array(ids)
