"""A prompt mixture mixes prompts tuned on other tasks; its weights are searched without gradients."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from bbt.experiment.experiment import Experiment, Trained
from bbt.methods.black_box import SearchMethod
from bbt.methods.prompt_search import SoftSearch
from bbt.spaces.initial import saved_prompt
from bbt.spaces.soft import PromptSpace
from bbt.types import Prompts


class PromptMixture(SearchMethod):
    """The search over p = m + the sum over the source prompts p_j of z_j (p_j - m), where m is their mean. It is
    Black-Box Tuning in the space that the sources span, with one weight for each source in place of d and A. It is the
    forward-only kin of ATTEMPT (`attempt`)."""

    sources: tuple[str, ...] = Field(min_length=2)
    """Run folders or files of soft prompts on the same model, all of `prompt.n_prompt_tokens` tokens."""

    def train(self, experiment: Experiment) -> Trained:
        """Search until the budget is spent; dev chooses among the candidates it has judged."""
        return MixtureSearch(experiment, self).run()


@dataclass
class MixtureSearch(SoftSearch):
    """Black-Box Tuning with the source prompts for A's columns."""

    settings: PromptMixture
    """The method's settings."""

    def _initial(self) -> Prompts:
        """The mean (1, T, H) of the sources."""
        e = self.experiment
        n_tokens = self.settings.prompt.n_prompt_tokens
        self._prompts = np.concatenate(
            [saved_prompt(Path(path), e.backend, n_tokens) for path in self.settings.sources]
        )
        return np.asarray(self._prompts.mean(axis=0, keepdims=True))

    def _space(self) -> PromptSpace:
        return PromptSpace(self._p0, (self._prompts - self._p0).reshape(len(self._prompts), -1).T)
