"""In P-tuning (Liu et al. 2021, arXiv 2103.10385) the prompt's vectors come out of a small network that is trained.

Its tokens may stand anywhere in the template, in several `{prompt}` places, with words of the template as anchors
between them. The network is PEFT's; only the vectors that it ends with are kept.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from bbt.backend import Trainable
from bbt.baselines.peft_training import peft_imported
from bbt.baselines.soft import soft_plan, soft_prompt_subject
from bbt.baselines.training import Subject, Training
from bbt.experiment.experiment import Experiment
from bbt.runs.estimate import PlannedQueries
from bbt.settings import PromptLength


class PTuning(Training):
    """P-tuning, with the encoder as wide as the model unless its width is given."""

    takes: ClassVar[tuple[str, ...]] = ("label_words", "likelihood", "mean_likelihood", "generation")

    prompt: PromptLength = PromptLength()
    """The prompt's length."""
    learning_rate: float = Field(1e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(100, gt=0)
    """The number of gradient steps."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """The network: a bidirectional LSTM with a two-layer perceptron, as in the paper, or the perceptron alone."""
    encoder_layers: int = Field(2, ge=1)
    """The number of the LSTM's layers."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """The network's width (none: H)."""

    def plan(self, references: bool) -> PlannedQueries:
        """The queries and steps of the training, and those of the test; see `soft_plan`."""
        return soft_plan(super().plan(references), self.prompt.n_prompt_tokens, 0, references)

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: the network's weights."""
        n_tokens, hidden_size = self.prompt.n_prompt_tokens, experiment.backend.info.hidden_size
        with peft_imported():
            from peft import PromptEncoder, PromptEncoderConfig

            config = PromptEncoderConfig(
                num_virtual_tokens=n_tokens,
                token_dim=hidden_size,
                num_transformer_submodules=1,
                encoder_reparameterization_type=self.encoder.upper(),
                encoder_num_layers=self.encoder_layers,
                encoder_hidden_size=self.encoder_hidden_size or hidden_size,
            )
            encoder = PromptEncoder(config).to(model.model.device)  # type: ignore[no-untyped-call]
        tokens = torch.arange(n_tokens, device=model.model.device)
        parameters = list(encoder.parameters())
        return soft_prompt_subject(experiment, model, parameters, lambda: encoder(tokens[None])[0], n_tokens)
