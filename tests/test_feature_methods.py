"""Small networks on frozen features: the saved arrays are scikit-learn's network, and both learn what is there."""

import numpy as np
import pytest
import torch
from toy import shared_config

from bbt.api import run, tune
from bbt.backend import Features
from bbt.baselines.feature_bilstm import BiLSTM
from bbt.errors import BackendError, RunError
from bbt.methods.feature_mlp import FeatureMLP, logits, perceptron, pooled
from bbt.predictor import Predictor
from bbt.runs.log import EventLog
from bbt.testing import ToyBackend


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_arrays_are_scikit_learns_network(n_classes):
    rng = np.random.default_rng(0)
    features = (5 + 3 * rng.normal(size=(30, 12))).astype(np.float32)
    labels = np.arange(30) % n_classes
    pipeline = FeatureMLP(hidden_size=7)._fitted(features, labels, 1e-3, seed=0)
    ours = torch.from_numpy(logits(perceptron(pipeline), features)).softmax(-1).numpy()
    np.testing.assert_allclose(ours, pipeline.predict_proba(features), atol=1e-5)
    assert (ours.argmax(-1) == labels).mean() > 0.9


def test_pooling():
    row = Features(np.arange(6, dtype=np.float32).reshape(3, 2), read=2)
    expected = {"read": [4, 5], "mean": [2, 3], "first": [0, 1]}
    for pooling, values in expected.items():
        np.testing.assert_array_equal(pooled([row], pooling), [values])


def test_the_lstm_reads_every_row_by_itself():
    network, rng = BiLSTM(4, 3, 2), np.random.default_rng(0)
    rows = [Features(rng.normal(size=(n, 4)).astype(np.float32), 0) for n in (5, 2, 7)]
    together = network.scores(rows)
    alone = np.concatenate([network.scores([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def settings(model, method, task="sst2", **own):
    return shared_config(
        {
            "task": {"name": task},
            "data": {"k": 8},
            "method": {"name": method, **own},
            "model": {"name": model, "options": {"precision": "fp32", "device": "cpu"}},
            "evaluation": {"rows": 200, "references": False},
            "selection": {"by": "loss"},
        }
    )


@pytest.mark.parametrize("method", ["feature-mlp", "feature-bilstm"])
def test_they_learn_from_the_bundled_models_features(method, tmp_path):
    """Better than chance on AG News by more than three standard errors of 200 rows; dev picks the lowest loss."""
    outcome = run(settings("minilm-mlm", method, "agnews"), tmp_path)
    assert outcome.result["test"]["tuned"]["accuracy"] > 0.25 + 3 * 0.035
    losses = [event["losses"][0] for event in EventLog(outcome.folder / "events.jsonl").of("dev")]
    assert outcome.result["selected"]["loss"] == min(losses) < max(losses)
    cost = outcome.result["cost"]
    assert (cost["train_queries"], cost["dev_queries"], cost["examples"]) == (1, 1, 64)
    text = ["The home team won the cup final in extra time after two late goals."]
    assert Predictor(outcome.folder).predict(text)[0]["label"] == "Sports"


@pytest.mark.parametrize("method", ["feature-mlp", "feature-bilstm"])
def test_many_rows_are_scored_in_batches(method, tiny_folder, monkeypatch):
    outcome = tune(settings(str(tiny_folder("bert")), method, hidden_size=4))
    from bbt.scoring.ledger import Ledger
    from bbt.tasks import Example

    examples = [Example(f"a film {'bad ' * i}", 0) for i in range(7)]
    whole = outcome.classifier.scores(examples, Ledger())
    monkeypatch.setattr("bbt.experiment.features.ROWS_AT_ONCE", 3)
    np.testing.assert_allclose(outcome.classifier.scores(examples, Ledger()), whole, atol=1e-5)


@pytest.mark.parametrize("method", ["feature-mlp", "feature-bilstm"])
def test_what_is_missing_is_said(method, tmp_path):
    with pytest.raises(BackendError, match="needs hidden states"):
        tune({"method": {"name": method}}, ToyBackend())
    from bbt.methods import make_method
    from bbt.settings import MethodConfig

    with pytest.raises(RunError, match="has its run finished"):
        make_method(MethodConfig(name=method), {}, {}).load(tmp_path, ToyBackend(), None)
