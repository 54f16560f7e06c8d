import hashlib
import tracemalloc

import numpy as np
import pytest

from bbt.draws import stable_choice, stable_normal, stable_uniform
from bbt.errors import ConfigError
from bbt.spaces.soft import PromptSpace, Recipe, normal_scale, random_projection

# T = 3 tokens of RoBERTa-large's 1024 numbers. A change of any of these changes every run's numbers.
GOLDEN = {
    "uniform": "7ef0807bea1b1221",
    "normal": "5013f839c5189d00",
    "orthonormal": "0c98331ba8d53fef",
}


@pytest.mark.parametrize("projection", GOLDEN)
def test_a_seed_gives_the_same_projection_on_every_machine(projection):
    matrix = random_projection(42, 3 * 1024, 20, projection, 0.25)
    assert hashlib.sha256(matrix.tobytes()).hexdigest()[:16] == GOLDEN[projection]


@pytest.mark.parametrize("projection", GOLDEN)
def test_a_projection_is_float32_of_shape_D_by_d_and_seeds_differ(projection):
    one, other = (random_projection(seed, 60, 7, projection, 1.0) for seed in (0, 1))
    assert one.shape == (60, 7)
    assert one.dtype == np.float32
    assert not np.isclose(one, other).any(axis=0).all()


def test_uniform_entries_fill_their_interval():
    entries = random_projection(1, 1000, 100, "uniform", 0.1)
    assert np.abs(entries).max() <= np.float32(0.1)
    assert np.abs(entries).max() > 0.0999
    np.testing.assert_allclose(entries.mean(), 0.0, atol=1e-3)
    np.testing.assert_allclose(entries.var(), 0.1**2 / 3, rtol=0.01)  # variance of U(-s, s)


def test_normal_entries_have_the_released_codes_standard_deviation():
    scale = normal_scale(embedding_std=0.08, intrinsic_dim=500, sigma0=0.5, alpha=2.0)
    assert scale == pytest.approx(2.0 * 0.08 / (np.sqrt(500) * 0.5), rel=1e-6)
    entries = random_projection(1, 1000, 100, "normal", scale)
    np.testing.assert_allclose(entries.std(), scale, rtol=0.01)
    np.testing.assert_allclose(entries.mean(), 0.0, atol=scale / 100)


def test_the_normal_numbers_are_normal():
    numbers = stable_normal(3, 100_001)
    assert numbers.shape == (100_001,)
    for limit, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert np.mean(np.abs(numbers) < limit) == pytest.approx(share, abs=0.005)
    assert abs(np.corrcoef(numbers[:50_000], numbers[50_000:100_000])[0, 1]) < 0.02  # cosine and sine halves


def test_orthonormal_columns_are_orthogonal_and_as_long_as_normal_ones():
    scale, n_rows = 0.3, 400
    columns = random_projection(5, n_rows, 30, "orthonormal", scale)
    gram = columns.T.astype(np.float64) @ columns
    np.testing.assert_allclose(gram, np.eye(30) * scale**2 * n_rows, atol=1e-3)


def test_orthonormal_columns_cannot_outnumber_the_prompts_numbers():
    with pytest.raises(ConfigError, match="intrinsic_dim 9 is larger than the prompt"):
        random_projection(0, 8, 9, "orthonormal", 1.0)


def test_prompts_are_p0_plus_A_z_row_by_row():
    rng = np.random.default_rng(0)
    p0 = rng.normal(size=(1, 3, 4)).astype(np.float32)
    space = PromptSpace(p0, random_projection(0, 12, 5, "normal", 0.7))
    latents = rng.normal(size=(6, 5))
    prompts = space.prompts(latents)
    assert prompts.shape == (6, 3, 4)
    assert prompts.dtype == np.float32
    for z, prompt in zip(latents, prompts, strict=True):
        np.testing.assert_allclose(prompt, p0[0] + (space.matrix @ z).reshape(3, 4), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(space.prompts(np.zeros((1, 5))), p0)
    assert (space.intrinsic_dim, space.n_prompt_tokens) == (5, 3)


def test_a_space_refuses_a_projection_for_another_prompt():
    with pytest.raises(ConfigError, match="A has 12 rows but p0 has 8 numbers"):
        PromptSpace(np.zeros((1, 2, 4), np.float32), np.zeros((12, 3), np.float32))


def test_the_checksum_tells_spaces_apart():
    p0, matrix = np.zeros((1, 2, 4), np.float32), random_projection(0, 8, 3, "uniform", 1.0)
    same = PromptSpace(p0.copy(), matrix.copy()).checksum()
    assert PromptSpace(p0, matrix).checksum() == same
    assert PromptSpace(p0 + 1, matrix).checksum() != same
    assert PromptSpace(p0, random_projection(1, 8, 3, "uniform", 1.0)).checksum() != same


def test_stable_choice_covers_its_range_and_never_leaves_it():
    choice = stable_choice(0, 7, 10_000)
    assert set(choice.tolist()) == set(range(7))
    np.testing.assert_allclose(np.bincount(choice) / 10_000, 1 / 7, atol=0.02)
    assert choice.dtype == np.int64


def test_stable_uniform_lies_in_the_half_open_unit_interval():
    numbers = stable_uniform(0, 100_000)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    np.testing.assert_allclose(numbers.mean(), 0.5, atol=0.005)


def test_a_large_projection_is_drawn_in_blocks_of_the_same_numbers(monkeypatch):
    expected = random_projection(3, 30, 7, "normal", 0.5)
    monkeypatch.setattr("bbt.draws._BLOCK", 16)
    np.testing.assert_array_equal(random_projection(3, 30, 7, "normal", 0.5), expected)


def test_drawing_takes_little_more_than_the_projection_itself():
    tracemalloc.start()
    n_bytes = random_projection(0, 20_000, 500, "normal", 1.0).nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * n_bytes + 2**26


def test_a_projection_that_no_machine_should_hold_is_refused():
    with pytest.raises(ConfigError, match=r"A would hold 51200 x 50000 numbers \(10.2 GB.*more than 8.6 GB"):
        random_projection(0, 51_200, 50_000, "normal", 1.0)


def test_a_tied_projection_moves_all_tokens_alike():
    p0 = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    space = PromptSpace.drawn(p0, Recipe(1, 5, "normal", 0.5, tied=True))
    moved = space.prompts(np.random.default_rng(0).normal(size=(6, 5))) - p0
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], 3, axis=1), atol=1e-5)
    np.testing.assert_array_equal(space.matrix[:4], random_projection(1, 4, 5, "normal", 0.5))
    assert len({tuple(row) for row in moved[:, 0].round(4).tolist()}) == 6
