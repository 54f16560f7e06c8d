"""Black-Box Tuning (BBT, arXiv 2201.03514): a derivative-free search over z in R^d; the prompt is p0 + A z."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.many_words import read_words
from bbt.methods.base import Method
from bbt.methods.generation_search import GenerationSearch
from bbt.methods.prompt_search import SoftSearch, schedule
from bbt.runs.estimate import PlannedQueries
from bbt.settings import (
    BudgetConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PromptConfig,
    SelectionConfig,
    SmallPopulationConfig,
    TiedPromptConfig,
)
from bbt.spaces.initial import n_screened
from bbt.tasks import Task


class SearchMethod(Method):
    """A method that searches for prompts by queries; its settings are sections of the config."""

    replays: ClassVar[bool] = True

    prompt: PromptConfig = PromptConfig()
    """The prompt's length, its start p0, and the space around it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What proposes candidates."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The training loss."""
    budget: BudgetConfig = BudgetConfig()
    """How many queries there are, and when dev judges."""
    selection: SelectionConfig = SelectionConfig()
    """What dev judges, and by what."""

    def worded(self, task: Task) -> Task:
        """The task with the prompt at the start of the row, where the settings ask for that."""
        return task.at_start() if self.prompt.placement == "start" else task


class BlackBox(SearchMethod):
    """Black-Box Tuning, with any optimizer."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    prompt: TiedPromptConfig = TiedPromptConfig()
    """The prompt's length, its start p0, and the space around it."""
    optimizer: SmallPopulationConfig = SmallPopulationConfig()
    """What proposes candidates."""
    n_words: int = Field(128, ge=0)
    """How many words, the label words among them, labels may be read from (0: the label words alone); vLLM lists no
    more at once. See `bbt.scoring.readout`."""

    def plan(self, references: bool) -> PlannedQueries:
        """The queries of the search, at most."""
        plan = schedule(self, (self.budget.queries,)).plan(n_screened(self.prompt), references)
        n_tokens, d = self.prompt.n_prompt_tokens, self.prompt.intrinsic_dim
        return replace(plan, n_prompt_tokens=n_tokens, intrinsic_dim=d, n_words=self.n_words)

    def train(self, experiment: Experiment) -> Trained:
        """Search until the budget is spent; dev chooses among the candidates it has judged."""
        read_words(experiment, self.n_words)
        search = GenerationSearch if experiment.generates else SoftSearch
        return search(experiment, self).run()

    def label(self, name: str) -> str:
        """The optimizer's name, which tells black-box searches apart."""
        return self.optimizer.name.replace(":", "-")
