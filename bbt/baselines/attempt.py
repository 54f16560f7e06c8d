"""ATTEMPT (Asai et al. 2022, arXiv 2205.11961): an attentional mixture of prompts tuned on other tasks.

Every row has a prompt of its own: p + the sum over the source prompts and p of a_j p_j, where the attention a comes of
the row's words. Trained are p and the small network that attends; the sources and the model stay frozen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bbt.backend import Backend, GradientBackend, Trainable, require
from bbt.baselines.losses import label_loss
from bbt.baselines.training import Subject, Training
from bbt.baselines.weights import counted
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment
from bbt.runs.estimate import PlannedQueries
from bbt.scoring.ledger import Ledger
from bbt.settings import InitialPromptConfig
from bbt.spaces.initial import initial_prompts, saved_prompt
from bbt.tasks import Example, Task
from bbt.types import RowScores

FILE = "mixture.safetensors"
ROWS_AT_ONCE = 32


class Attempt(Training):
    """ATTEMPT's training. p begins as the section `prompt` says."""

    prompt: InitialPromptConfig = InitialPromptConfig()
    """The length and the start of p."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Run folders or files of soft prompts on the same model, all of `prompt.n_prompt_tokens` tokens."""
    bottleneck: int = Field(100, ge=1)
    """The width of the attending network (300 in the authors' code)."""
    learning_rate: float = Field(3e-3, gt=0)
    """The optimizer's step size."""
    steps: int = Field(200, gt=0)
    """The number of gradient steps."""

    def plan(self, references: bool) -> PlannedQueries:
        """The queries and steps of the training, and those of the test."""
        return replace(super().plan(references), n_prompt_tokens=self.prompt.n_prompt_tokens)

    def subject(self, experiment: Experiment, model: Trainable) -> Subject:
        """What is trained: p and the attending network."""
        e, n_tokens = experiment, self.prompt.n_prompt_tokens
        sources = np.concatenate([saved_prompt(Path(path), e.backend, n_tokens) for path in self.sources])
        target = initial_prompts(self.prompt, e.backend, e.task, e.split.train, e.seed)[0]
        mixture = Mixture(torch.from_numpy(sources), torch.from_numpy(target.copy()), self.bottleneck)
        classifier = AttemptClassifier(e.backend, e.task, model, mixture.to(model.model.device))
        encoded = model.encode(e.task.rows(e.split.train, n_tokens), e.task.label_words)
        e.ledger.count_cut(encoded)
        words = classifier.pooled_words(e.split.train)

        def logits(rows: Sequence[int]) -> Tensor:
            found: Tensor = model.logits(encoded, rows, mixture(words[rows]))
            return found

        loss = label_loss(logits, e.train.labels, encoded.n_tokens)
        return Subject(list(mixture.parameters()), loss, lambda: classifier)

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the mixture with its sources.

        Raises:
            RunError: there is none; BackendError: a forward-only backend.
        """
        if not (folder / FILE).is_file():
            raise RunError(f"{folder} holds no {FILE}: has its run finished? `bbt resume {folder}` goes on.")
        model = require(backend, GradientBackend, "attempt").trainable()
        arrays = load_file(folder / FILE)
        mixture = Mixture(arrays["sources"], arrays["target"], self.bottleneck)
        mixture.load_state_dict(arrays)
        return AttemptClassifier(backend, task, model, mixture.to(model.model.device))


class Mixture(nn.Module):
    """A network that makes a prompt for every row, from the row's words."""

    sources: Tensor
    """(t, T, H) source prompts, which stay frozen."""

    def __init__(self, sources: Tensor, target: Tensor, bottleneck: int) -> None:
        """Begin with `sources` (t, T, H) and the target prompt p (T, H)."""
        super().__init__()
        hidden_size = target.shape[1]
        self.register_buffer("sources", sources)
        self.target = nn.Parameter(target.clone())
        self.down = nn.Linear(hidden_size, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, words: Tensor) -> Tensor:
        """The prompts (b, T, H) of rows, of which `words` (b, H) are the word embeddings, the largest in each
        coordinate over the row."""
        prompts = torch.cat([self.sources, self.target[None]])
        return self.target + torch.einsum("bj,jth->bth", self.attention(words, prompts), prompts)

    def attention(self, words: Tensor, prompts: Tensor) -> Tensor:
        """The weights (b, t + 1) of the prompts; the temperature is H * e, as in the paper."""
        queries = self.norm(self.up(nn.functional.silu(self.down(words))))
        keys = prompts.amax(dim=1)
        return torch.softmax(queries @ keys.T / (words.shape[1] * math.e), dim=-1)


@dataclass(frozen=True)
class AttemptClassifier:
    """A classifier that is a trained mixture on its model."""

    backend: Backend
    """The backend from whose model the copy was made."""
    task: Task
    """The template and label words that rows are put in."""
    model: Trainable
    """The copy of the model, which can be given a prompt for each row."""
    mixture: Mixture
    """The network that makes each row's prompt."""

    @torch.no_grad()
    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The logits (B, K) of the examples, each row under its own prompt."""
        encoded = self.model.encode(self.task.rows(examples, len(self.mixture.target)), self.task.label_words)
        ledger.truncated += encoded.n_truncated
        with counted(ledger, encoded):
            words = self.pooled_words(examples)
            found = [
                self.model.logits(encoded, rows.tolist(), self.mixture(words[rows])).float().cpu().numpy()
                for rows in torch.split(torch.arange(len(examples)), ROWS_AT_ONCE)
            ]
        ledger.tokens_down += len(examples)
        scores = np.concatenate(found)
        ledger.bytes_down += scores.nbytes
        return scores

    def pooled_words(self, examples: Sequence[Example]) -> Tensor:
        """The largest word embedding (B, H) of each example's texts, in each coordinate."""
        texts = [f"{example.text} {example.text_pair}".strip() for example in examples]
        pooled = np.stack([self.backend.embed_text(text or ".")[0].max(axis=0) for text in texts])
        return torch.from_numpy(pooled).to(self.mixture.target.device)

    def save(self, folder: Path) -> None:
        """Write the mixture as `mixture.safetensors`."""
        save_file(self.mixture.state_dict(), folder / FILE)
