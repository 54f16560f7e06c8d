"""Soft prompts rounded to words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

from bbt.spaces.rounding import rounded, similarities

RULES = ("nearest", "distinct", "stochastic")


def words(n=40, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, hidden)) * rng.uniform(0.2, 3, (n, 1))).astype(np.float32)


def prompts(n=6, n_tokens=4, hidden=8, seed=1):
    return np.random.default_rng(seed).standard_normal((n, n_tokens, hidden)).astype(np.float32)


def test_the_nearest_word_is_that_of_scikit_learn():
    flat = prompts().reshape(-1, 8)
    by_cosine = cosine_similarity(flat, words()).argmax(axis=1).reshape(6, 4)
    by_distance = euclidean_distances(flat, words()).argmin(axis=1).reshape(6, 4)
    np.testing.assert_array_equal(rounded(prompts(), words(), "cosine", "nearest"), by_cosine)
    np.testing.assert_array_equal(rounded(prompts(), words(), "l2", "nearest"), by_distance)
    assert (by_cosine != by_distance).any()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("rule", ["nearest", "distinct"])
def test_words_themselves_are_kept(metric, rule):
    ids = np.array([[3, 1, 4], [15, 9, 2]])
    np.testing.assert_array_equal(rounded(words()[ids], words(), metric, rule), ids)


def test_cosine_is_blind_to_length_and_a_word_of_zeros_does_no_harm():
    table = words()
    table[5] = 0
    near = similarities(prompts() * 7, table, "cosine")
    np.testing.assert_allclose(near, similarities(prompts(), table, "cosine"), atol=1e-6)
    assert np.isfinite(near).all()


@given(st.integers(0, 1000), st.integers(1, 8))
def test_distinct_repeats_no_word_and_the_most_certain_token_has_its_choice(seed, n_tokens):
    soft = prompts(1, n_tokens, seed=seed)
    (ids,) = rounded(soft, words(12), "cosine", "distinct")
    assert len(set(ids)) == n_tokens
    near = similarities(soft, words(12), "cosine")[0]
    first = near.max(axis=1).argmax()
    assert ids[first] == near[first].argmax()


def test_stochastic_depends_on_the_seed_and_the_prompt_alone():
    soft = prompts(50)
    ids = rounded(soft, words(), "l2", "stochastic", seed=3)
    np.testing.assert_array_equal(rounded(soft[7:9], words(), "l2", "stochastic", seed=3), ids[7:9])
    assert (rounded(soft, words(), "l2", "stochastic", seed=4) != ids).mean() > 0.2


def test_stochastic_draws_near_words_more_often():
    soft = np.repeat(words()[[7]], 400, axis=0)[:, None] + 1e-4 * prompts(400, 1)
    ids = rounded(soft, words(), "cosine", "stochastic")
    near = similarities(soft[:1], words(), "cosine")[0, 0]
    counts = np.bincount(ids.ravel(), minlength=40)
    likely, unlikely = near.argsort()[-10:], near.argsort()[:10]
    assert counts[likely].sum() > 3 * counts[unlikely].sum() > 0


@pytest.mark.parametrize("rule", RULES)
def test_no_tokens_and_no_prompts_are_no_special_case(rule):
    assert rounded(prompts(2, 0), words(), "cosine", rule).shape == (2, 0)
    assert rounded(prompts(0, 3), words(), "cosine", rule).shape == (0, 3)
