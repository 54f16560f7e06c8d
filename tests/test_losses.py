import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import log_loss

from bbt.scoring.losses import cross_entropy, finite_losses, gold, hinge, load_loss, log_softmax, negative_metric
from bbt.settings import LOSSES
from bbt.tasks.metrics import accuracy
from bbt.testing import check_loss

N, B, K = 4, 9, 3
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
SCORES = np.random.default_rng(0).normal(scale=3, size=(N, B, K)).astype(np.float32)


def by_name(name):
    return {
        "cross_entropy": cross_entropy,
        "hinge": hinge,
        "negative_metric": lambda scores, labels: negative_metric(scores, labels, accuracy),
    }[name]


def test_cross_entropy_is_scikit_learns_log_loss():
    probabilities = np.exp(log_softmax(SCORES))
    expected = [log_loss(LABELS, p, labels=[0, 1, 2]) for p in probabilities]
    np.testing.assert_allclose(cross_entropy(SCORES, LABELS), expected, rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-6)


def test_log_softmax_does_not_overflow():
    scores = np.array([[[1e4, 0.0], [-1e4, 0.0]]], np.float32)
    np.testing.assert_allclose(log_softmax(scores), [[[0.0, -1e4], [-1e4, 0.0]]])


@pytest.mark.parametrize("margin", [2.0, 0.5])
def test_hinge_sums_over_wrong_labels_and_averages_over_examples(margin):
    # torch divides by the number of classes, the reference does not.
    torch_loss = torch.nn.functional.multi_margin_loss
    expected = [K * torch_loss(torch.tensor(s), torch.tensor(LABELS), margin=margin).item() for s in SCORES]
    np.testing.assert_allclose(hinge(SCORES, LABELS, margin), expected, rtol=1e-5)


def test_hinge_by_hand_with_the_reference_margin():
    scores = np.array([[[1.0, 0.0, 4.0], [5.0, 0.0, 0.0]]], np.float32)
    # first: gold 1 -> (2 + 0 - 1) + (2 + 4 - 1) = 6; second: gold 5 -> nothing within the margin
    np.testing.assert_allclose(hinge(scores, np.array([0, 0])), [3.0])


def test_negative_metric_is_minus_the_accuracy_of_the_argmax():
    expected = [-np.mean(s.argmax(axis=1) == LABELS) for s in SCORES]
    np.testing.assert_allclose(negative_metric(SCORES, LABELS, accuracy), expected)


def test_gold_takes_each_examples_own_label():
    np.testing.assert_array_equal(gold(SCORES, LABELS)[2, 4], SCORES[2, 4, 1])


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "negative_metric"])
@given(constants=arrays(np.float32, (N, B, 1), elements=st.integers(-64, 64).map(float)))
def test_losses_do_not_feel_a_constant_per_example(loss, constants):
    scores = np.round(SCORES * 8) / 8  # the shift must be exact for the claim to be
    function = by_name(loss)
    np.testing.assert_allclose(function(scores + constants, LABELS), function(scores, LABELS), rtol=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "negative_metric"])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_candidate_with_a_nan_is_worst_and_the_others_are_untouched(loss, label):
    scores = SCORES.copy()
    scores[1, 0, label] = np.nan
    losses = finite_losses(by_name(loss)(scores, LABELS))
    assert losses[1] == np.inf
    np.testing.assert_array_equal(np.delete(losses, 1), np.delete(by_name(loss)(SCORES, LABELS), 1))


def test_finite_losses_makes_every_broken_value_infinite():
    losses = finite_losses(np.array([np.nan, -np.inf, np.inf, 0.5]))
    np.testing.assert_array_equal(losses, [np.inf, np.inf, np.inf, 0.5])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_keeps_the_contract(name):
    check_loss(load_loss(name, 2.0, accuracy))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda scores, labels: cross_entropy(scores, labels).mean(), "have shape"),
        (lambda scores, labels: cross_entropy(scores, labels) + scores.mean(), "depends on the other candidates"),
        (lambda scores, labels: -gold(scores, labels).mean(axis=-1), "feels a constant"),
        (lambda scores, labels: -cross_entropy(scores, labels), "does not fall"),
        (lambda scores, labels: np.nan_to_num(cross_entropy(scores, labels)), "NaN among its scores has a finite"),
    ],
)
def test_a_fault_of_a_loss_is_found_and_told_in_a_sentence(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_loss(fault)
