"""Feature-MLP (BBT section 4.1) is a two-layer perceptron on the frozen model's pooled hidden states."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bbt.backend import Backend, Features
from bbt.errors import RunError
from bbt.experiment.classifiers import Classifier
from bbt.experiment.experiment import Experiment, Trained
from bbt.experiment.features import all_features, feature_batches
from bbt.files import write_bytes_atomically
from bbt.methods.base import SelectingMethod
from bbt.runs.observer import Progress
from bbt.scoring.ledger import Ledger
from bbt.tasks import Example, Task
from bbt.types import Labels, RowScores

FILE = "mlp.safetensors"

Pooling: TypeAlias = Literal["read", "mean", "first"]
"""`read` is the hidden state where label words are scored, `mean` is the mean over the row, and `first` is the first
token's."""


class FeatureMLP(SelectingMethod):
    """Feature-MLP, trained by L-BFGS on standardised features until it converges. The paper's authors have not released
    theirs, so pooling and sizes are ours."""

    pooling: Pooling = "mean"
    """How a row's hidden states (N, H) become one vector (H,): see `pooled`."""
    hidden_size: int = Field(256, ge=1)
    """The width h of the hidden layer."""
    l2: tuple[float, ...] = Field((1e-3, 1e-1, 10.0), min_length=1)
    """Weight decays (scikit-learn's alpha), of which dev picks one."""

    def train(self, experiment: Experiment) -> Trained:
        """Take the features of train and dev in one pass each, and fit a perceptron for each weight decay.

        Raises:
            BackendError: the backend hands out no hidden states.
        """
        e, best = experiment, None
        train, dev = (
            pooled(all_features(e.backend, e.task, rows, e.ledger), self.pooling)
            for rows in (e.split.train, e.split.dev)
        )
        e.ledger.train_queries, e.ledger.dev_queries = 1, 1
        e.observer.started(len(self.l2), "fit")
        for i, l2 in enumerate(self.l2):
            arrays = perceptron(self._fitted(train, e.train.labels, l2, e.seed))
            classifier = FeatureMLPClassifier(e.backend, e.task, self.pooling, arrays)
            verdict = e.judge(classifier, f"l2 {l2:g}", logits(arrays, dev), logits(arrays, train))
            if best is None or verdict.better_than(best.verdict, self.selection.by):
                n_parameters = sum(array.size for array in arrays.values())
                best = Trained(classifier, f"l2 {l2:g}", verdict, 1, n_parameters, {"manual": e.manual})
            e.observer.progressed(Progress(i + 1, verdict.loss, best.verdict.metric))
        assert best is not None
        return best

    def load(self, folder: Path, backend: Backend, task: Task) -> Classifier:
        """Load the perceptron's arrays.

        Raises:
            RunError: there are none.
        """
        from safetensors.numpy import load_file

        if not (folder / FILE).is_file():
            raise RunError(f"{folder} holds no {FILE}: has its run finished? `bbt resume {folder}` goes on.")
        return FeatureMLPClassifier(backend, task, self.pooling, load_file(folder / FILE))

    def _fitted(self, features: NDArray[np.float32], labels: Labels, l2: float, seed: int) -> Any:
        """Fit scaler and perceptron, as a scikit-learn pipeline."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        network = MLPClassifier((self.hidden_size,), solver="lbfgs", alpha=l2, max_iter=500, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # dev judges what 500 iterations give
            return make_pipeline(StandardScaler(), network).fit(features.astype(np.float64), labels)


@dataclass(frozen=True)
class FeatureMLPClassifier:
    """A classifier made of the model's features and a perceptron on them."""

    backend: Backend
    """The model that gives the features."""
    task: Task
    """The template that rows are put in."""
    pooling: Pooling
    """How a row's hidden states (N, H) become one vector (H,)."""
    arrays: dict[str, NDArray[np.float64]]
    """The perceptron's weights by name: see `perceptron`."""

    def scores(self, examples: Sequence[Example], ledger: Ledger) -> RowScores:
        """The logits (B, K) of the examples."""
        batches = feature_batches(self.backend, self.task, examples, ledger)
        return np.concatenate([logits(self.arrays, pooled(batch, self.pooling)) for batch in batches])

    def save(self, folder: Path) -> None:
        """Write the arrays as `mlp.safetensors`."""
        from safetensors.numpy import save

        write_bytes_atomically(folder / FILE, save(self.arrays))


def pooled(features: Sequence[Features], pooling: Pooling) -> NDArray[np.float32]:
    """The features pooled to one vector a row, (B, H)."""
    if pooling == "mean":
        return np.stack([row.hidden_states.mean(axis=0) for row in features])
    return np.stack([row.hidden_states[row.read if pooling == "read" else 0] for row in features])


def perceptron(pipeline: Any) -> dict[str, NDArray[np.float64]]:
    """A fitted pipeline as plain arrays: hidden (H, h), hidden_bias (h,), output (h, K), output_bias (K,). The scaler
    is folded into the first layer. Where scikit-learn has one output for two classes, the other is zero."""
    scaler, network = pipeline[0], pipeline[1]
    hidden, output = network.coefs_
    hidden_bias, output_bias = network.intercepts_
    if output.shape[1] == 1:
        output, output_bias = np.hstack([0 * output, output]), np.concatenate([0 * output_bias, output_bias])
    hidden = hidden / scaler.scale_[:, None]
    return {
        "hidden": hidden,
        "hidden_bias": hidden_bias - scaler.mean_ @ hidden,
        "output": output,
        "output_bias": output_bias,
    }


def logits(arrays: dict[str, NDArray[np.float64]], features: NDArray[np.float32]) -> RowScores:
    """The outputs (B, K) for features (B, H) of the perceptron, whose hidden layer is rectified."""
    hidden = np.maximum(0.0, features @ arrays["hidden"] + arrays["hidden_bias"])
    return np.asarray(hidden @ arrays["output"] + arrays["output_bias"], dtype=np.float32)
