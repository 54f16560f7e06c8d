"""The contract of `bbt.optimizers.Optimizer`."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bbt.optimizers import Optimizer, ScoreOptimizer, Settings
from bbt.scoring.losses import cross_entropy
from bbt.types import Latents, Losses, Scores

D, POPULATION, GENERATIONS = 20, 20, 40
"""d, n, and how many populations each search has."""
TARGET = np.linspace(-1.0, 1.5, D)
"""Where the loss that is minimised is 0."""
LABELS = np.arange(12) % 3
"""(B,) the labels of the rows whose scores an optimizer is told, if it learns from scores."""


def check_optimizer(factory: Callable[[Settings], Optimizer]) -> None:
    """Check what every optimizer keeps to: shapes and types, no use of NumPy's global generator, the same candidates
    for the same losses (so that a run can be resumed), bounds, sigma0, and that what it recommends has been improved.
    One that learns from label scores is told some, too, a broken candidate's among them.

    `factory` is the class, or makes the optimizer from its settings.

    Raises:
        AssertionError: a clause is broken; says which.
    """
    _leaves_the_global_generator_alone(factory)
    _replays(factory)
    _improves(factory)
    _stays_within_bounds(factory)
    _begins_with_the_spread_asked_for(factory)
    if isinstance(factory(settings()), ScoreOptimizer):
        _learns_from_scores(factory)


def quadratic(latents: Latents) -> Losses:
    """(n, d) -> (n,): the squared distance from `TARGET`."""
    return np.asarray(np.square(latents - TARGET).sum(axis=1))


def searched(
    factory: Callable[[Settings], Optimizer],
    settings: Settings,
    loss: Callable[[Latents], Losses] = quadratic,
    n_generations: int = GENERATIONS,
    told: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], Optimizer]:
    """The candidates (g, n, d), losses (g, n) and optimizer of a search of g generations, which is told its own
    losses, or those of an earlier one."""
    optimizer = factory(settings)
    latents: list[Latents] = []
    losses: list[Losses] = []
    for generation in range(n_generations):
        latents.append(optimizer.ask())
        losses.append(loss(latents[-1]) if told is None else told[generation])
        optimizer.tell(latents[-1], losses[-1])
    return np.array(latents), np.array(losses), optimizer


def settings(seed: int = 3, sigma0: float = 1.0, bounds: tuple[float, float] | None = None) -> Settings:
    """The settings of a search that is quick."""
    return Settings(D, POPULATION, seed, sigma0, bounds, budget=POPULATION * GENERATIONS)


def _leaves_the_global_generator_alone(factory: Callable[[Settings], Optimizer]) -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    latents, _, optimizer = searched(factory, settings())
    after = np.random.get_state()[1]  # type: ignore[index]
    assert np.array_equal(before, after), "NumPy's global generator was used: draw from one seeded by settings.seed."
    assert latents.shape == (GENERATIONS, POPULATION, D), (
        f"{GENERATIONS} populations of {POPULATION} candidates in {D} dimensions have shape {latents.shape}."
    )
    for what, values in (("candidates are", latents), ("the mean is", optimizer.mean)):
        assert values.dtype == np.float64, f"{what} of {values.dtype}, expected float64."
    assert optimizer.mean.shape == (D,), f"the mean has shape {optimizer.mean.shape}, expected ({D},)."


def _replays(factory: Callable[[Settings], Optimizer]) -> None:
    latents, losses, optimizer = searched(factory, settings())
    state = np.random.get_state()
    np.random.seed(1)  # must not matter
    again, _, replayed = searched(factory, settings(), told=losses)
    np.random.set_state(state)
    assert np.array_equal(again, latents), (
        "told the same losses it asks for other candidates: a run could not be resumed."
    )
    assert np.array_equal(replayed.mean, optimizer.mean), "told the same losses it recommends another point."
    other, _, _ = searched(factory, settings(seed=4), n_generations=1)
    assert not np.array_equal(other[0], latents[0]), "another seed gives the same candidates."


def _improves(factory: Callable[[Settings], Optimizer]) -> None:
    _, losses, optimizer = searched(factory, settings())
    recommended = float(quadratic(optimizer.mean[None])[0])
    assert recommended < losses[0].min(), (
        f"after {GENERATIONS} generations on a quadratic it recommends a point of loss {recommended:.3g}; the best of "
        f"the first generation had {losses[0].min():.3g}."
    )


def _stays_within_bounds(factory: Callable[[Settings], Optimizer]) -> None:
    outside = lambda latents: np.square(latents - 5.0).sum(axis=1)  # noqa: E731
    latents, _, optimizer = searched(factory, settings(bounds=(-1.5, 2.0)), outside)
    for what, values in (("a candidate", latents), ("the mean", optimizer.mean)):
        low, high = float(values.min()), float(values.max())
        assert low >= -1.5, f"{what} leaves the bounds (-1.5, 2): {low}."
        assert high <= 2.0, f"{what} leaves the bounds (-1.5, 2): {high}."


def _begins_with_the_spread_asked_for(factory: Callable[[Settings], Optimizer]) -> None:
    near, far = (float(searched(factory, settings(sigma0=s), n_generations=1)[0].std()) for s in (0.1, 1.0))
    assert 0.04 < near < 0.2, f"the first population's standard deviation is {near:.3g} with sigma0 = 0.1."
    assert abs(far / near - 10) < 0.5, f"ten times sigma0 spreads the first population {far / near:.3g} times as far."


def _learns_from_scores(factory: Callable[[Settings], Optimizer]) -> None:
    first, again = _told_scores(factory), _told_scores(factory)
    assert np.array_equal(first[0], again[0]), (
        "told the same scores it asks for other candidates: a run could not be resumed."
    )
    latents, losses, recommended = first
    assert np.isfinite(latents).all(), "told of a broken candidate it asks for candidates that are not finite."
    assert recommended < losses[0].min(), (
        f"told label scores it recommends a point of loss {recommended:.3g}; the best of the first generation had "
        f"{losses[0].min():.3g}."
    )


def _told_scores(factory: Callable[[Settings], Optimizer]) -> tuple[Latents, Losses, float]:
    """The candidates (g n, d) and losses (g, n) of a search that is told scores, one candidate's broken, and the loss
    of what it recommends."""
    optimizer = factory(settings())
    assert isinstance(optimizer, ScoreOptimizer)
    latents: list[Latents] = []
    losses: list[Losses] = []
    for generation in range(10):
        latents.append(optimizer.ask())
        scores = _linear_scores(latents[-1])
        losses.append(cross_entropy(scores, LABELS))
        if generation == 3:
            scores[0], losses[-1][0] = np.nan, losses[-1].max() + 1.0
        optimizer.tell_scores(latents[-1], losses[-1], scores, LABELS)
    recommended = cross_entropy(_linear_scores(optimizer.mean[None]), LABELS)
    return np.concatenate(latents), np.array(losses), float(recommended[0])


def _linear_scores(latents: Latents) -> Scores:
    """Label scores (n, B, K) that are linear in z (n, d); each row's have a mean of zero."""
    slopes = np.random.RandomState(0).standard_normal((D, len(LABELS) * 3)) / np.sqrt(D)
    scores = (latents @ slopes).reshape(len(latents), len(LABELS), 3)
    return np.asarray(scores - scores.mean(axis=2, keepdims=True))
