"""The manual prompt: nothing is tuned."""

from typing import ClassVar

from pydantic import Field

from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.many_words import judged_words, read_words
from bbt.methods.base import Method
from bbt.runs.estimate import PlannedQueries


class Manual(Method):
    """The manual prompt: the template's words and the label words as they are (BBT section 4.1)."""

    n_words: int = Field(0, ge=0)
    """How many words, the label words among them, labels may be read from (0: the label words alone). See
    `bbt.scoring.readout`."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    def plan(self, references: bool) -> PlannedQueries:
        """The one query that is spent on dev."""
        return PlannedQueries(train=0, dev=0, manual_dev=1, test=0, manual_test=1, n_words=self.n_words)

    def train(self, experiment: Experiment) -> Trained:
        """Judge the manual prompt once on dev, for the table."""
        if experiment.generates:
            generator = experiment.generator(experiment.no_prompt)
            judged = experiment.judge_generator(generator, "manual")
            return Trained(generator, "manual", judged, train_queries=0, n_parameters=0)
        read_words(experiment, self.n_words)
        manual = experiment.manual
        if experiment.strength:
            found, verdict = judged_words(experiment, manual, "manual words")
            return Trained(found, "manual words", verdict, train_queries=0, n_parameters=found.prompt.n_weights)
        return Trained(manual, "manual", experiment.judge(manual, "manual"), train_queries=0, n_parameters=0)
