"""Black-Box Tuning (BBT, arXiv 2201.03514): a derivative-free search over z in R^d; the prompt is p0 + A z."""

from dataclasses import replace
from typing import ClassVar

from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.base import Method
from bbt.methods.generation_search import GenerationSearch
from bbt.methods.prompt_search import SoftSearch, schedule
from bbt.runs.estimate import Plan
from bbt.settings import BudgetConfig, ObjectiveConfig, OptimizerConfig, PromptConfig, SelectionConfig
from bbt.spaces.initial import n_screened


class SearchMethod(Method):
    """A method that searches for prompts by queries; its settings are sections of the config."""

    replays: ClassVar[bool] = True

    prompt: PromptConfig = PromptConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    budget: BudgetConfig = BudgetConfig()
    selection: SelectionConfig = SelectionConfig()


class BlackBox(SearchMethod):
    """Black-Box Tuning, with any optimizer."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    def plan(self, references: bool) -> Plan:
        """The queries of its loop."""
        plan = schedule(self, (self.budget.queries,)).plan(n_screened(self.prompt), references)
        return replace(plan, n_prompt_tokens=self.prompt.n_prompt_tokens, intrinsic_dim=self.prompt.intrinsic_dim)

    def train(self, experiment: Experiment) -> Trained:
        """Search until the budget is spent; dev chooses among the candidates it has judged."""
        search = GenerationSearch if experiment.generates else SoftSearch
        return search(experiment, self).run()

    def label(self, name: str) -> str:
        """The optimizer's name, which tells black-box searches apart."""
        return self.optimizer.name.replace(":", "-")
