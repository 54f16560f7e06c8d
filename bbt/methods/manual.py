"""The manual prompt: nothing is tuned."""

from typing import ClassVar

from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.base import Method
from bbt.runs.estimate import PlannedQueries


class Manual(Method):
    """The manual prompt: the template's words and the label words as they are (BBT section 4.1)."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    def plan(self, references: bool) -> PlannedQueries:
        """The one query that is spent on dev."""
        return PlannedQueries(train=0, dev=0, manual_dev=1, test=0, manual_test=1)

    def train(self, experiment: Experiment) -> Trained:
        """Judge the manual prompt once on dev, for the table."""
        if experiment.generates:
            generator = experiment.generator(experiment.no_prompt)
            judged = experiment.judge_generator(generator, "manual")
            return Trained(generator, "manual", judged, train_queries=0, n_parameters=0)
        classifier = experiment.manual
        return Trained(classifier, "manual", experiment.judge(classifier, "manual"), train_queries=0, n_parameters=0)
