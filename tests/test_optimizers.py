import subprocess
import sys
import tracemalloc
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bbt.errors import ConfigError
from bbt.optimizers import OPTIMIZERS, Settings, make_optimizer
from bbt.optimizers.random_search import RandomSearch
from bbt.testing import check_optimizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # moarchiving and matplotlib, which only other parts of pycma use
    import cma
from cma.sigma_adaptation import CMAAdaptSigmaCSA, CMAAdaptSigmaTPA

D, POPULATION, GENERATIONS = 20, 20, 40
TARGET = np.linspace(-1.0, 1.5, D)
NAMES = [*OPTIMIZERS, "TwoPointsDE", "LognormalDiscreteOnePlusOne"]


def quadratic(latents):
    return np.square(latents - TARGET).sum(axis=1)


def search(name, generations=GENERATIONS, told=None, function=quadratic, **settings):
    """Candidates (g, n, d), losses (g, n) and the optimizer after some generations; `told` replays losses."""
    settings = {"intrinsic_dim": D, "population_size": POPULATION, "seed": 3, "budget": 800, **settings}
    optimizer = make_optimizer(name, Settings(**settings))
    latents, losses = [], []
    for generation in range(generations):
        latents.append(optimizer.ask())
        losses.append(function(latents[-1]) if told is None else told[generation])
        optimizer.tell(latents[-1], losses[-1])
    return np.array(latents), np.array(losses), optimizer


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_keeps_the_contract(name):
    check_optimizer(partial(make_optimizer, name))


@pytest.mark.parametrize(("name", "rule"), [*((name, "csa") for name in NAMES), ("cma", "tpa")])
def test_every_optimizer_searches(name, rule):
    latents, losses, optimizer = search(name, step_size_rule=rule)
    np.random.seed(1)  # must not matter
    again, _, replayed = search(name, told=losses, step_size_rule=rule)
    np.testing.assert_array_equal(again, latents, err_msg="replayed losses gave another trajectory")
    np.testing.assert_array_equal(replayed.mean, optimizer.mean)
    recommended = quadratic(optimizer.mean[None])[0]
    if name == "random":
        assert recommended == losses.min() < losses[0].min()
    else:
        assert recommended < 0.5 * quadratic(np.zeros((1, D)))[0]
        assert np.median(losses[-1]) < np.median(losses[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_is_felt_where_the_best_point_lies_outside(name):
    latents, _, _ = search(name, bounds=(-1.5, 2.0), function=lambda z: np.square(z - 5.0).sum(axis=1))
    assert latents.max() > 1.9


class Faulty(RandomSearch):
    """Random search with one fault."""

    def __init__(self, fault, settings):
        given = {"bounds": replace(settings, bounds=None), "sigma0": replace(settings, sigma0=1.0)}
        super().__init__(given.get(fault, settings))
        self.fault = fault

    def ask(self):
        latents = super().ask()
        if self.fault == "global":
            latents += 1e-9 * np.random.standard_normal(latents.shape)
        if self.fault == "unseeded":
            latents += 1e-9 * np.random.default_rng().standard_normal(latents.shape)
        return latents.astype(np.float32) if self.fault == "float32" else latents

    def tell(self, latents, losses):
        super().tell(latents, -losses if self.fault == "worst" else losses)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("global", "global generator was used"),
        ("unseeded", "asks for other candidates"),
        ("float32", "expected float64"),
        ("worst", "recommends a point of loss"),
        ("bounds", "leaves the bounds"),
        ("sigma0", "first population's standard deviation"),
    ],
)
def test_a_fault_of_an_optimizer_is_found_and_told_in_a_sentence(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_optimizer(partial(Faulty, fault))


def raw_pycma(rule, diagonal, seed, sigma0, bounds, generations=GENERATIONS):
    """pycma as its own documentation uses it, seeded by its own option."""
    options = {"seed": seed, "popsize": POPULATION, "AdaptSigma": rule, "CMA_diagonal": diagonal, "bounds": bounds}
    strategy = cma.CMAEvolutionStrategy([0.0] * D, sigma0, {**options, "verbose": -9})
    latents = []
    for _ in range(generations):
        latents.append(strategy.ask())
        strategy.tell(latents[-1], list(quadratic(np.array(latents[-1]))))
    return np.array(latents), np.array(strategy.result.xfavorite)


@pytest.mark.parametrize("bounds", [None, (-0.5, 0.75)])
@pytest.mark.parametrize(("name", "diagonal"), [("cma", False), ("cma-separable", True)])
def test_cma_is_pycma_with_the_same_seed(name, diagonal, bounds):
    ours, _, optimizer = search(name, bounds=bounds, seed=11, sigma0=0.7)
    expected, mean = raw_pycma(CMAAdaptSigmaCSA, diagonal, 11, 0.7, list(bounds) if bounds else [None, None])
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_allclose(optimizer.mean, mean, atol=1e-12)


def test_tpa_is_pycmas_until_its_self_checks_draw_from_the_seed():
    ours, _, optimizer = search("cma", 4, step_size_rule="tpa", seed=11, sigma0=0.7)
    expected, mean = raw_pycma(CMAAdaptSigmaTPA, False, 11, 0.7, [None, None], 4)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_allclose(optimizer.mean, mean, atol=1e-12)


def test_the_step_size_rule_and_the_covariance_make_a_difference():
    full, separable, tpa = search("cma")[0], search("cma-separable")[0], search("cma", step_size_rule="tpa")[0]
    np.testing.assert_allclose(full[0], separable[0], rtol=1e-3)
    for other in (separable, tpa):
        assert not np.allclose(full[-1], other[-1], rtol=0.01)


def test_many_dimensions_keep_the_step_size_rule_that_was_asked_for():
    settings = {"intrinsic_dim": 500, "generations": 3, "function": lambda z: (z**2).sum(axis=1)}
    csa, _, optimizer = search("cma-separable", **settings)
    assert csa.shape == (3, POPULATION, 500)
    assert isinstance(optimizer._strategy.adapt_sigma, CMAAdaptSigmaCSA)
    assert not np.allclose(csa[2], search("cma-separable", step_size_rule="tpa", **settings)[0][2])


def test_zeroth_order_estimates_the_gradient_from_antithetic_pairs():
    gradient = np.arange(1.0, D + 1)
    latents, _, optimizer = search(
        "zeroth-order", 1, function=lambda z: z @ gradient, population_size=4000, sigma0=0.3, learning_rate=0.2
    )
    np.testing.assert_allclose(latents[0, :2000], -latents[0, 2000:])
    np.testing.assert_allclose(optimizer.mean, -0.2 * 0.3, rtol=1e-6)  # Adam's first step is the sign times the rate


def test_zeroth_order_needs_pairs():
    with pytest.raises(ConfigError, match="even population, got 7"):
        make_optimizer("zeroth-order", Settings(population_size=7))


def test_a_nevergrad_optimizer_that_takes_no_populations_says_so():
    with pytest.raises(
        ConfigError, match=r"nevergrad's SPSA cannot search whole populations here \(.*SPSA does not .*Choose another"
    ):
        make_optimizer("SPSA", Settings(intrinsic_dim=D))


@pytest.mark.parametrize("name", ["CMA", "DiagonalCMA"])
def test_nevergrads_cma_searches_in_many_dimensions_with_populations_that_are_not_its_own(name):
    latents, *_ = search(name, 25, function=lambda z: (z**2).sum(axis=1), intrinsic_dim=300)
    assert latents.shape == (25, POPULATION, 300)  # pycma's generations have 21 here
    assert cma.evolution_strategy.TPA_dimension == 300, "pycma's default was left changed"


@pytest.mark.parametrize(
    ("fails", "when"),
    [("ask", "asked for candidates"), ("tell", "told losses"), ("provide_recommendation", "for its recommendation")],
)
def test_what_fails_inside_nevergrad_names_the_optimizer_and_what_to_choose(monkeypatch, fails, when):
    _, _, optimizer = search("TwoPointsDE", 1)

    def broken(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(optimizer._optimizer, fails, broken)
    with pytest.raises(ConfigError, match=rf"{when} \(RuntimeError: two lines\).*cma"):  # noqa: PT012
        optimizer.tell(optimizer.ask(), np.zeros(POPULATION))
        optimizer.mean  # noqa: B018


def test_a_process_ends_though_nevergrad_has_a_thread_that_waits_for_losses():
    script = """
import threading
from bbt.optimizers import Settings, make_optimizer
optimizer = make_optimizer("Carola3", Settings(intrinsic_dim=20, population_size=20, budget=2000))
for _ in range(6):
    latents = optimizer.ask()
    optimizer.tell(latents, (latents**2).sum(axis=1))
print([thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()])
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "[True]\n", said.stderr


def test_the_candidates_of_full_cma_do_not_depend_on_the_number_of_threads():
    def last(n_threads):
        with threadpool_limits(n_threads, user_api="blas"):
            return search("cma", 20, function=lambda z: (z**2).sum(axis=1), intrinsic_dim=300)[0][-1]

    np.testing.assert_array_equal(last(1), last(2))


@pytest.mark.parametrize(
    ("name", "nearest"), [("cma-seperable", "cma-separable"), ("TwoPointDE", "TwoPointsDE"), ("pso", "PSO")]
)
def test_an_unknown_name_suggests_ours_and_nevergrads(name, nearest):
    with pytest.raises(ConfigError, match=f"unknown optimizer {name!r}.*Did you mean {nearest!r}"):
        make_optimizer(name, Settings())


@pytest.mark.parametrize("d", [2001, 10_000, 50_000])
def test_a_full_covariance_of_many_dimensions_is_refused_before_it_is_allocated(d):
    tracemalloc.start()
    with pytest.raises(ConfigError, match=f"full CMA-ES in {d} dimensions .* up to 2000. Choose .* cma-separable"):
        make_optimizer("cma", Settings(intrinsic_dim=d))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * d * d / 10


@pytest.mark.parametrize("name", ["cma-separable", "kernel-surrogate", "random", "zeroth-order"])
def test_memory_grows_with_d_not_with_its_square(name):
    make_optimizer(name, Settings(intrinsic_dim=10))  # whatever is imported
    peaks = {}
    for d in (5_000, 20_000):
        tracemalloc.start()
        search(name, 2, function=lambda z: (z**2).sum(axis=1), intrinsic_dim=d)
        peaks[d] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[20_000] < 5 * peaks[5_000]
    assert peaks[20_000] < 20 * 8 * POPULATION * 20_000


def test_standard_deviations_are_held_within_bounds_as_pycma_holds_them():
    import cma

    settings = Settings(intrinsic_dim=6, population_size=8, sigma0=2.0, bounds=(-1.0, 1.0))
    ours = make_optimizer("cma-separable", settings)
    theirs = cma.CMAEvolutionStrategy(np.zeros(6), 2.0, type(ours).options(settings))
    for _ in range(30):
        latents = ours.ask()
        np.testing.assert_array_equal(latents, theirs.ask())
        losses = -(latents**2).sum(axis=1)  # away from the middle, so that the spread grows until it is held
        ours.tell(latents, losses)
        theirs.tell(list(latents), losses.tolist())
    np.testing.assert_array_equal(ours.mean, theirs.gp.pheno(theirs.mean, into_bounds=theirs.boundary_handler.repair))
