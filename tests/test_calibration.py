"""Class biases: fitted as scikit-learn fits them, exactly invariant, and safe where a label word is hardly possible."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from bbt.api import run, tune
from bbt.config import make_config
from bbt.predictor import Predictor
from bbt.prompts import SoftPrompt
from bbt.scoring.calibration import class_biases, fitted_biases, held_out
from bbt.scoring.judge import verdicts
from bbt.scoring.losses import cross_entropy, log_softmax, predicted
from bbt.tasks import Task, Template
from bbt.testing import ToyBackend

KINDS = ("fitted", "batch", "content-free")
TASK = Task("t", Template("{prompt} {text} {mask}"), ("a", "b", "c"), ("a", "b", "c"))


def drawn(seed, n=4, b=30, k=3, scale=2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (n, b, k)), rng.integers(0, k, b)


def test_fitted_biases_minimise_what_they_say():
    """Equation (1), minimised by SciPy."""
    scores, labels = drawn(0)
    logs = log_softmax(scores)
    for one, biases in zip(logs, fitted_biases(scores, labels), strict=True):
        centred = one - one.mean(axis=0)

        def objective(b, centred=centred):
            return len(labels) * cross_entropy((centred + b)[None], labels)[0] + 0.5 * (b**2).sum()

        expected = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x - one.mean(axis=0)
        np.testing.assert_allclose(biases, expected - expected.mean(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-40, 40), min_size=3, max_size=3), st.integers(0, 99), st.sampled_from(KINDS))
def test_a_constant_added_to_a_class_changes_neither_loss_nor_answer(constant, seed, kind):
    scores, labels = drawn(seed)
    free = drawn(seed + 1, b=2)[0]
    found = []
    for shift in (np.zeros(3), np.array(constant)):
        biases = class_biases(kind, scores + shift, labels, lambda shift=shift: free + shift)
        found.append(scores + shift + biases[:, None])
    losses = [cross_entropy(calibrated, labels) for calibrated in found]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-6)
    margins = np.diff(np.sort(log_softmax(found[0]), axis=-1)[..., -2:], axis=-1)[..., 0]
    same = predicted(found[0]) == predicted(found[1])
    assert same[margins > 1e-5].all()


def test_one_number_a_class_repairs_a_biased_model():
    labels = np.repeat(np.arange(3), 20)
    scores = 2.0 * np.eye(3)[labels][None] + np.array([0.0, 9.0, -30.0]) + drawn(3, n=1, b=60, scale=0.3)[0]
    assert (predicted(scores[0]) == labels).mean() < 0.4
    for kind in ("fitted", "batch"):
        repaired = scores[0] + class_biases(kind, scores, labels)[0]
        assert (predicted(repaired) == labels).mean() == 1.0


@pytest.mark.parametrize("k", [2, 14])
def test_vanishing_probabilities_and_empty_classes_are_survived(k):
    rng = np.random.default_rng(k)
    labels = rng.integers(0, k - 1, 40)  # the last class has no row
    scores = rng.normal(0, 1, (5, 40, k)) - 27.6 * (np.arange(k) == 0)  # a label word of probability 1e-12
    biases = fitted_biases(scores, labels)
    assert np.isfinite(biases).all()
    assert np.abs(biases).max() < 60
    losses = cross_entropy(scores + biases[:, None], labels)
    assert (losses <= cross_entropy(scores + class_biases("batch", scores, labels)[:, None], labels) + 1e-9).all()


def test_a_broken_prompt_has_no_biases_and_spoils_no_other():
    scores, labels = drawn(5)
    broken = scores.copy()
    broken[1, 0, 0] = np.nan
    for kind in KINDS:
        biases = class_biases(kind, broken, labels, lambda: scores[:, :2])
        assert not biases[1].any()
        np.testing.assert_array_equal(biases[0], class_biases(kind, scores, labels, lambda: scores[:, :2])[0])


def test_held_out_biases_do_not_see_the_row_they_are_added_to():
    """A dev row's own label changes its calibrated scores in no way."""
    (train, train_labels), (dev, labels) = drawn(1, b=9), drawn(2, b=8)
    before = held_out("fitted", train, train_labels, dev, labels)
    other = labels.copy()
    other[3] = (other[3] + 1) % 3
    after = held_out("fitted", train, train_labels, dev, other)
    np.testing.assert_array_equal(before[:, 3], after[:, 3])
    assert np.abs(before[:, 4] - after[:, 4]).max() > 0


def test_verdicts_are_cross_entropy_without_calibration_and_what_remains_with_it():
    scores, labels = drawn(7)
    plain = verdicts(TASK, labels, scores)
    np.testing.assert_allclose([v.loss for v in plain], cross_entropy(scores, labels))
    assert plain[0].biases is None
    shifted = scores + np.array([0.0, 50.0, 0.0])
    calibrated = verdicts(TASK, labels, shifted, "fitted", (shifted, labels))
    assert max(v.loss for v in calibrated) < min(v.loss for v in verdicts(TASK, labels, shifted))


TOY = {
    "model": {"backend": "bbt.testing:ToyBackend", "name": "toy"},
    "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 4, "n_screened": 1},
    "optimizer": {"population_size": 8},
    "budget": {"queries": 48, "dev_every": 16},
    "data": {"k": 4},
    "evaluation": {"rows": 40},
}


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_biases_are_saved_with_the_prompt_and_used_by_a_predictor(kind, tmp_path):
    outcome = run(make_config({**TOY, "calibration": kind}), tmp_path)
    saved = SoftPrompt.load(outcome.folder)
    assert (saved.biases is None) == (kind == "none")
    again = Predictor(outcome.folder)
    task, rows = outcome.classifier.task, [*map(str, range(5))]
    assert [row["label"] for row in again.predict(rows)] == [
        row["label"] for row in Predictor(outcome.folder / "prompt.safetensors").predict(rows)
    ]
    assert task.label_words
    assert ("manual calibrated" in outcome.result["test"]) == (kind != "none")
    assert json.loads((outcome.folder / "result.json").read_text())["calibration"] == kind


def test_the_manual_prompt_is_calibrated_as_any_other():
    own = {key: TOY[key] for key in ("model", "data", "evaluation")}
    outcome = tune(make_config({**own, "method": {"name": "manual"}}), ToyBackend())
    assert outcome.classifier.prompt.biases is not None
