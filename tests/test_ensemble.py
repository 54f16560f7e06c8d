"""Ensembles: members are trained apart, averaged in log-probabilities, and saved whole."""

import numpy as np
import pytest
import torch
from toy import shared_config

from bbt.api import run
from bbt.errors import ConfigError
from bbt.methods.ensemble import averaged
from bbt.predictor import Predictor
from bbt.runs.log import EventLog
from bbt.scoring.ledger import Ledger

TEXTS = ["a joy from start to end", "dull and slow", "the plot"]


@pytest.fixture
def settings(tiny_folder):
    def make(method, **sections):
        return shared_config(
            {
                "data": {"k": 4},
                "model": {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}},
                "evaluation": {"rows": 20, "references": False},
                "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 1},
                "optimizer": {"population_size": 4},
                "budget": {"queries": 8, "dev_every": 4},
                "selection": {"baselines": False},
                "method": method,
                **sections,
            }
        )

    return make


def probabilities(folder):
    rows = Predictor(folder).predict(TEXTS)
    return np.array([list(row["probabilities"].values()) for row in rows])


def geometric_mean(several):
    return torch.from_numpy(np.log(several).mean(axis=0)).softmax(-1).numpy()


def test_log_probabilities_are_averaged_whatever_constants_they_are_free_in():
    scores = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    shifted = scores + np.random.default_rng(1).normal(size=(3, 5, 1)).astype(np.float32)
    expected = torch.from_numpy(scores).log_softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(averaged(list(shifted)), expected, atol=1e-5)


def test_finished_runs_of_any_methods_are_averaged(settings, tmp_path):
    search = run(settings({"name": "black-box"}), tmp_path)
    features = run(settings({"name": "feature-mlp", "hidden_size": 4}), tmp_path)
    folders = [str(search.folder), str(features.folder)]
    outcome = run(settings({"name": "ensemble", "members": folders}, calibration="none"), tmp_path)
    expected = geometric_mean([probabilities(folder) for folder in folders])
    np.testing.assert_allclose(probabilities(outcome.folder), expected, atol=1e-5)
    assert outcome.result["n_parameters"] == sum(o.result["n_parameters"] for o in (search, features))
    cost = outcome.result["cost"]
    assert (cost["train_queries"], cost["dev_queries"]) == (0, 2)


def test_the_saved_ensemble_needs_its_members_no_more(settings, tmp_path):
    folder = run(settings({"name": "manual"}), tmp_path).folder
    outcome = run(settings({"name": "ensemble", "members": [str(folder)] * 2}), tmp_path)
    before = probabilities(outcome.folder)
    folder.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(probabilities(outcome.folder), before)


def test_members_are_trained_on_one_split_with_seeds_of_their_own(settings, tmp_path):
    outcome = run(settings({"name": "ensemble", "n_members": 3}, seed=2, calibration="none"), tmp_path)
    members = outcome.classifier.members
    assert [member.seed for member in members] == [6, 7, 8]
    prompts = [member.classifier.prompt.embeddings for member in members]
    assert all(np.abs(a - b).max() > 0.01 for a, b in [prompts[:2], prompts[1:]])
    cost = outcome.result["cost"]
    assert cost["train_queries"] == 3 * 8
    data, method = {"k": 4, "seed": 2}, {"name": "black-box"}
    alone = [run(settings(method, seed=m.seed, data=data, calibration="none"), tmp_path) for m in members]
    assert cost["dev_queries"] == sum(o.result["cost"]["dev_queries"] for o in alone) + 3
    expected = geometric_mean([probabilities(o.folder) for o in alone])
    np.testing.assert_allclose(probabilities(outcome.folder), expected, atol=1e-5)
    names = [event["names"] for event in EventLog(outcome.folder / "events.jsonl").of("dev")]
    assert names == [["member 1"], ["member 2"], ["member 3"], ["ensemble"]]


def test_impossible_members_are_said(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing is not a run folder"):
        run(settings({"name": "ensemble", "members": [str(tmp_path / "nothing")]}), tmp_path)
    with pytest.raises(ConfigError, match="not ensembles"):
        run(settings({"name": "ensemble", "of": {"name": "ensemble"}}), tmp_path)
    other = run(
        settings({"name": "manual"}, task={"name": "agnews", "label_words": ["a", "it", "is", "the"]}), tmp_path
    )
    with pytest.raises(ConfigError, match=r"has the labels \['World', .*the task \['negative', 'positive'\]"):
        run(settings({"name": "ensemble", "members": [str(other.folder)]}), tmp_path)


def test_the_cost_of_an_ensembles_scores_is_all_its_members(settings, tmp_path):
    outcome, ledger = run(settings({"name": "ensemble", "n_members": 2}), tmp_path), Ledger()
    from bbt.tasks import Example

    outcome.classifier.scores([Example(text, 0) for text in TEXTS], ledger)
    assert ledger.examples == 2 * len(TEXTS)
