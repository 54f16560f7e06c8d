"""The manual prompt: nothing is tuned."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from bbt.experiment.classifiers import SoftPromptClassifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.many_words import read_out, read_words
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
        classifier = experiment.manual
        if experiment.strength:
            return self._read_out(experiment, classifier)
        return Trained(classifier, "manual", experiment.judge(classifier, "manual"), train_queries=0, n_parameters=0)

    def _read_out(self, experiment: Experiment, classifier: SoftPromptClassifier) -> Trained:
        """Judge the manual prompt with labels that are read from many words."""
        e = experiment
        assert e.strength is not None
        verdict = e.judge_words(classifier, "manual words")
        found, biases = read_out(e, classifier, (e.train, e.dev))
        n_weights = 0 if found.prompt.weights is None else found.prompt.weights.size
        return Trained(found, "manual words", replace(verdict, biases=biases), 0, n_weights)
