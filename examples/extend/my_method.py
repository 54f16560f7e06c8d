"""A method: of some random prompts the one that dev judges best. Its fields are its settings in a config."""

import numpy as np

from bbt.experiment.experiment import Experiment, Trained
from bbt.methods import Method
from bbt.settings import PromptLength


class BestOf(Method):
    n: int = 4
    prompt: PromptLength = PromptLength()

    def train(self, experiment: Experiment) -> Trained:
        backend, rng, best = experiment.backend, np.random.default_rng(experiment.seed), None
        for draw in range(self.n):
            ids = rng.choice(backend.ordinary_ids(), self.prompt.n_prompt_tokens)
            classifier = experiment.soft_prompt(backend.embed_ids(ids.tolist())[0], None)
            verdict = experiment.judge(classifier, f"draw {draw}")
            if best is None or verdict.better_than(best.verdict, "loss"):
                best = Trained(classifier, f"draw {draw}", verdict, train_queries=0, n_parameters=0)
        return best
