"""The optimizer that models label scores, against closed forms, explicit refits and a search that is told losses."""

import tracemalloc

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge as Reference

from bbt.optimizers import Settings, make_optimizer
from bbt.optimizers.kernel_ridge import LENGTHS, RIDGES, KernelRidge
from bbt.optimizers.kernel_surrogate import HELD, KEPT, KernelSurrogate, _CrossEntropy, _step
from bbt.scoring.losses import cross_entropy

RNG = np.random.default_rng(0)
D, B, K = 60, 40, 3
LABELS = np.arange(B) % K
SLOPES = RNG.standard_normal((D, B * K)) / np.sqrt(D)
POINTS = RNG.standard_normal((15, 6))
OUTPUTS = np.tanh(POINTS @ RNG.standard_normal((6, 4)))


def linear_scores(latents):
    scores = (latents @ SLOPES).reshape(len(latents), B, K)
    return scores - scores.mean(axis=2, keepdims=True)


def best_loss(name, n_queries, told=True, population=12):
    """The lowest loss of a search on rows whose scores are linear in z."""
    optimizer, lowest = make_optimizer(name, Settings(D, population, seed=1)), np.inf
    for _ in range(n_queries // population):
        latents = optimizer.ask()
        scores = linear_scores(latents)
        losses = cross_entropy(scores, LABELS)
        lowest = min(lowest, losses.min())
        if told:
            optimizer.tell_scores(latents, losses, scores, LABELS)
        else:
            optimizer.tell(latents, losses)
    return lowest


def test_label_scores_are_worth_several_times_the_queries():
    found = best_loss("kernel-surrogate", 120)
    assert found < best_loss("cma-separable", 5 * 120, told=False)
    assert found < best_loss("kernel-surrogate", 120, told=False)


def centred_kernel(points, length, others=None):
    others = points if others is None else others
    return length * np.exp(-np.square(points[:, None] - others[None]).sum(axis=2) / (2 * length))


def reference_error(length, ridge):
    """The squared errors on left-out points, each foreseen by a fit to all others with an intercept."""
    total, n = 0.0, len(POINTS)
    for left in range(n):
        rest = np.arange(n) != left
        kernel = centred_kernel(POINTS, length)
        # An intercept is a constant in the kernel that costs nothing.
        fitted = Reference(alpha=ridge, kernel="precomputed").fit(kernel[np.ix_(rest, rest)] + 1e7, OUTPUTS[rest])
        total += np.square(OUTPUTS[left] - fitted.predict(kernel[[left]][:, rest] + 1e7)).sum()
    return total


def test_the_length_and_the_ridge_are_those_under_which_left_out_points_are_foreseen_best():
    model = KernelRidge(POINTS, OUTPUTS)
    distances = np.square(POINTS[:, None] - POINTS[None]).sum(axis=2)
    typical = np.median(distances[np.triu_indices(len(POINTS), 1)])
    scale = distances[0].mean()
    tried = {(typical * a, scale * b): reference_error(typical * a, scale * b) for a in LENGTHS for b in RIDGES}
    length, ridge = min(tried, key=tried.get)
    assert model._length == pytest.approx(length)
    fitted = Reference(alpha=ridge, kernel="precomputed").fit(centred_kernel(POINTS, length) + 1e7, OUTPUTS)
    at = RNG.standard_normal(model.n_coordinates)
    foreseen = lambda z: fitted.predict(centred_kernel(z[None], length, POINTS) + 1e7)[0]  # noqa: E731
    shift = OUTPUTS[0] - foreseen(POINTS[0])  # the first point is met exactly
    np.testing.assert_allclose(model.outputs(at), foreseen(model.point(at)) + shift, atol=1e-5)


def test_the_first_point_is_met_and_the_derivatives_are_those_of_the_outputs():
    model, small = KernelRidge(POINTS, OUTPUTS), 1e-6
    np.testing.assert_allclose(model.outputs(np.zeros(model.n_coordinates)), OUTPUTS[0])
    np.testing.assert_array_equal(model.point(np.zeros(model.n_coordinates)), POINTS[0])
    at = 0.3 * RNG.standard_normal(model.n_coordinates)
    numeric = [(model.outputs(at + e) - model.outputs(at - e)) / (2 * small) for e in small * np.eye(len(at))]
    np.testing.assert_allclose(model.jacobian(at), np.array(numeric).T, atol=1e-6)


def test_the_slopes_are_those_of_the_cross_entropy():
    goal, outputs, small = _CrossEntropy(LABELS), RNG.standard_normal(B * K), 1e-5
    assert goal.value(outputs) == pytest.approx(cross_entropy(outputs.reshape(1, B, K), LABELS)[0])
    directions = RNG.standard_normal((B * K, 4))
    gradient, curvature = goal.slopes(outputs, directions)
    around = [goal.slopes(outputs + s * directions[:, i], directions)[0] for i in range(4) for s in (small, -small)]
    values = [goal.value(outputs + s * directions[:, i]) for i in range(4) for s in (small, -small)]
    np.testing.assert_allclose(gradient, np.diff(values)[::2] / (-2 * small), atol=1e-6)
    np.testing.assert_allclose(curvature, -np.diff(around, axis=0)[::2] / (2 * small), atol=1e-6)


def test_a_step_goes_to_the_minimum_or_to_the_edge_of_the_trust_region():
    root, gradient = RNG.standard_normal((5, 5)), RNG.standard_normal(5)
    curvature, at = root @ root.T, 0.1 * RNG.standard_normal(5)
    newton = -np.linalg.solve(curvature, gradient)
    np.testing.assert_allclose(_step(at, gradient, curvature, 1e3), newton, rtol=1e-5)
    short = _step(at, gradient, curvature, 0.4)
    assert np.linalg.norm(at + short) == pytest.approx(0.4, rel=1e-6)
    value = lambda step: gradient @ step + step @ curvature @ step / 2  # noqa: E731
    others = RNG.standard_normal((1000, 5))
    others *= 0.4 / np.linalg.norm(others, axis=1, keepdims=True)
    assert value(short) < min(map(value, others - at)) + 1e-6


def radius_after(kept):
    """The trust region's radius, by what it was, after steps that have kept so much of what they promised."""
    optimizer = KernelSurrogate(Settings(D, 12, seed=1))
    latents = optimizer.ask()
    losses = latents @ np.ones(D)
    optimizer.tell(latents, losses)
    before, latents = optimizer._radius, optimizer.ask()
    promised = losses.min() - np.array(optimizer._promised)
    optimizer.tell(latents, np.concatenate([losses.min() - kept * promised, np.full(10, 9.0)]))
    return optimizer._radius / before


def test_the_trust_region_grows_by_what_was_kept_and_shrinks_where_nothing_was():
    assert radius_after(np.array([0.9, 0.9])) == pytest.approx(1.5)
    assert radius_after(np.array([0.4, 0.1])) == pytest.approx(1.15)
    assert radius_after(np.array([0.1, 0.9])) == pytest.approx(0.65)
    assert radius_after(np.array([-0.1, -0.1])) == pytest.approx(0.6)


def test_explored_directions_are_new():
    optimizer = KernelSurrogate(Settings(D, 12, seed=1))
    for _ in range(2):
        latents = optimizer.ask()
        optimizer.tell(latents, np.square(latents).sum(axis=1))
    offsets = optimizer._points - optimizer._centre
    fresh = optimizer.ask()[2:] - optimizer._centre
    np.testing.assert_allclose(fresh @ offsets.T, 0, atol=1e-9)


def test_the_newest_points_and_the_best_are_remembered():
    optimizer = KernelSurrogate(Settings(4, 100))
    asked = []
    for generation in range(HELD // 100 + 2):
        asked.append(optimizer.ask())
        losses = np.ones(100)
        losses[0] = generation != 1
        optimizer.tell(asked[-1], losses)
    assert optimizer._points.shape == (HELD, 4)
    np.testing.assert_array_equal(optimizer._centre, asked[1][0])
    np.testing.assert_array_equal(optimizer._points[-1], asked[-1][-1])


def test_ten_thousand_dimensions_take_no_square_of_them():
    d, n = 10_000, KEPT + 50
    optimizer, labels = KernelSurrogate(Settings(d, n)), np.arange(4) % 2
    slopes = np.random.default_rng(1).standard_normal((d, 8)) / np.sqrt(d)
    tracemalloc.start()
    for _ in range(2):
        latents = optimizer.ask()
        scores = (latents @ slopes).reshape(n, 4, 2)
        optimizer.tell_scores(latents, cross_entropy(scores, labels), scores, labels)
    assert optimizer.mean.shape == (d,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * d * d / 4


@pytest.mark.parametrize(("d", "n"), [(1, 2), (2, 3), (3, 40)])
def test_few_dimensions_and_tiny_populations_are_searched(d, n):
    optimizer = KernelSurrogate(Settings(d, n))
    for _ in range(20):
        latents = optimizer.ask()
        assert latents.shape == (n, d)
        optimizer.tell(latents, np.square(latents - 2.0).sum(axis=1))
    np.testing.assert_allclose(optimizer.mean, 2.0, atol=0.3)


def test_a_generation_without_one_sound_candidate_teaches_nothing():
    optimizer = KernelSurrogate(Settings(D, 4))
    broken = np.full((4, B, K), np.nan)
    optimizer.tell_scores(optimizer.ask(), np.ones(4), broken, LABELS)
    np.testing.assert_array_equal(optimizer.mean, 0.0)
    latents = optimizer.ask()
    optimizer.tell_scores(latents, cross_entropy(linear_scores(latents), LABELS), linear_scores(latents), LABELS)
    before, latents = optimizer._radius, optimizer.ask()
    optimizer.tell_scores(latents, np.ones(4), broken, LABELS)
    assert optimizer._radius < before
    assert np.isfinite(optimizer.ask()).all()
