"""Feature-BiLSTM (BBT section 4.1) is a bidirectional LSTM over the frozen model's hidden states. Only the LSTM is
trained: the language model is run forward, once for each row."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence

from bbt.backend import Backend, Features
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.features import all_features, feature_batches
from bbt.methods.base import SelectingMethod
from bbt.runs.observer import Progress
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, Task
from bbt.types import Labels, RowScores

FILE = "bilstm.safetensors"


class FeatureBiLSTM(SelectingMethod):
    """Feature-BiLSTM. The paper's authors have not released theirs, so the sizes and the training are ours: Adam on
    cross-entropy; dev judges after every epoch, and the best state is kept."""

    hidden_size: int = Field(128, ge=1)
    """The width of the LSTM's states, in each direction."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size."""
    batch_size: int = Field(8, ge=1)
    """The training rows of a step."""
    epochs: int = Field(30, ge=1)
    """How often every training row is seen."""

    def train(self, experiment: Experiment) -> Trained:
        """Take the features of train and dev in one pass each; the epochs work on these.

        Raises:
            BackendError: the backend hands out no hidden states.
        """
        e, best = experiment, None
        train, dev = (all_features(e.backend, e.task, rows, e.ledger) for rows in (e.split.train, e.split.dev))
        e.ledger.train_queries, e.ledger.dev_queries = 1, 1
        e.observer.started(self.epochs, "epoch")
        with torch.random.fork_rng():
            torch.manual_seed(e.seed)
            network = self._network(e.backend, e.task)
            optimizer = torch.optim.Adam(network.parameters(), self.learning_rate)
            for epoch in range(1, self.epochs + 1):
                loss = self._epoch(network, optimizer, train, e.train.labels)
                classifier = FeatureBiLSTMClassifier(e.backend, e.task, network)
                verdict = e.judge(classifier, f"epoch {epoch}", network.scores(dev), network.scores(train))
                if best is None or verdict.better_than(best[1], self.selection.by):
                    best = f"epoch {epoch}", verdict, deepcopy(network)
                e.observer.progressed(Progress(epoch, loss, best[1].metric))
        assert best is not None
        who, verdict, network = best
        n_parameters = sum(weight.numel() for weight in network.parameters())
        classifier = FeatureBiLSTMClassifier(e.backend, e.task, network)
        return Trained(classifier, who, verdict, 1, n_parameters, {"manual": e.manual})

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the LSTM's weights.

        Raises:
            RunError: there are none.
        """
        if not (folder / FILE).is_file():
            raise RunError(f"{folder} holds no {FILE}: has its run finished? `bbt resume {folder}` goes on.")
        network = self._network(backend, task)
        load_model(network, folder / FILE)
        return FeatureBiLSTMClassifier(backend, task, network)

    def _network(self, backend: Backend, task: Task) -> "BiLSTM":
        return BiLSTM(backend.info.hidden_size, self.hidden_size, len(task.label_words))

    def _epoch(
        self, network: "BiLSTM", optimizer: torch.optim.Optimizer, train: Sequence[Features], labels: Labels
    ) -> float:
        """Train on every training row once, in a new order, and return the mean loss."""
        total = 0.0
        for rows in torch.split(torch.randperm(len(train)), self.batch_size):
            loss = cross_entropy(network([train[i] for i in rows]), torch.from_numpy(labels)[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(rows)
        return total / len(train)


class BiLSTM(nn.Module):
    """A network that takes the last states of both directions, side by side, and a linear layer over them."""

    def __init__(self, n_inputs: int, hidden_size: int, n_labels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(n_inputs, hidden_size, bidirectional=True)
        self.output = nn.Linear(2 * hidden_size, n_labels)

    def forward(self, features: Sequence[Features]) -> Tensor:
        """The logits (B, K) of rows of any lengths."""
        rows = [torch.from_numpy(row.hidden_states) for row in features]
        _, (last, _) = self.lstm(pack_sequence(rows, enforce_sorted=False))
        logits: Tensor = self.output(torch.cat([last[0], last[1]], dim=-1))
        return logits

    @torch.no_grad()
    def scores(self, features: Sequence[Features]) -> RowScores:
        """The logits (B, K) of rows, without gradients."""
        return np.asarray(self(features).numpy())


@dataclass(frozen=True)
class FeatureBiLSTMClassifier:
    """A classifier made of the model's features and the LSTM over them."""

    backend: Backend
    """The model that gives the features."""
    task: Task
    """The template that rows are put in."""
    network: BiLSTM
    """The trained LSTM."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The logits (B, K) of the examples."""
        batches = feature_batches(self.backend, self.task, examples, ledger)
        return np.concatenate([self.network.scores(batch) for batch in batches])

    def save(self, folder: Path) -> None:
        """Write the weights as `bilstm.safetensors`."""
        save_model(self.network, str(folder / FILE))
