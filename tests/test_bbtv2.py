"""BBTv2: the layers take turns as in the released code, on raw pycma; the search finds better prompts and replays."""

import json
import warnings

import numpy as np
import pytest
from toy import shared_config

from bbt.api import resume, run, tune
from bbt.errors import BackendError, ConfigError
from bbt.optimizers import Settings, make_optimizer
from bbt.optimizers.layerwise import Layerwise
from bbt.prompts.soft import SoftPrompt
from bbt.spaces.deep import DeepSpace
from bbt.spaces.soft import PromptSpace, random_projection
from bbt.testing import ToyBackend

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cma

L, D, N = 3, 4, 6


def deep_space(n_tokens=2, hidden_size=4):
    size = n_tokens * hidden_size
    p0 = np.random.default_rng(0).normal(size=(L, 1, n_tokens, hidden_size)).astype(np.float32)
    return DeepSpace(tuple(PromptSpace(p0[i], random_projection(i, size, D, "normal", 0.5)) for i in range(L)))


def test_a_deep_prompt_is_every_layers_own():
    space, latents = deep_space(), np.random.default_rng(1).normal(size=(N, L * D))
    prompts = space.prompts(latents)
    assert prompts.shape == (N, L, 2, 4)
    for i, layer in enumerate(space.layers):
        np.testing.assert_allclose(prompts[:, i], layer.prompts(latents[:, i * D : (i + 1) * D]), rtol=1e-6)
    np.testing.assert_array_equal(space.prompts(np.zeros((1, L * D))), space.p0)


def test_layers_at_which_candidates_agree_are_computed_once_and_agree_to_the_last_bit(monkeypatch):
    computed, original = [], PromptSpace.prompts
    monkeypatch.setattr(PromptSpace, "prompts", lambda self, z: computed.append(len(z)) or original(self, z))
    latents = np.tile(np.random.default_rng(1).normal(size=L * D), (N, 1))
    latents[:, -D:] = np.random.default_rng(2).normal(size=(N, D))
    prompts = deep_space(n_tokens=50, hidden_size=33).prompts(latents)
    assert computed == [1, 1, N]
    assert (prompts[:, :-1] == prompts[:1, :-1]).all()
    assert (prompts[1:, -1] != prompts[:1, -1]).any()


def test_the_layers_take_turns_as_in_the_released_code():
    """One raw pycma strategy a layer; each round visits all from bottom to top, the others at their best ever."""
    target = np.random.default_rng(3).normal(size=L * D)
    losses = lambda latents: np.square(latents - target).sum(axis=1)  # noqa: E731
    strategies = [make_optimizer("cma", Settings(D, N, seed=i)) for i in range(L)]
    ours = Layerwise(strategies)

    rule = {"popsize": N, "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA, "verbose": -9, "seed": np.nan}
    raw = [
        cma.CMAEvolutionStrategy([0.0] * D, 1.0, {**rule, "randn": np.random.RandomState(i).randn}) for i in range(L)
    ]
    best = np.zeros((L, D))
    for _ in range(5):
        for layer, strategy in enumerate(raw):
            own = np.array(strategy.ask())
            expected = np.tile(best, (N, 1, 1))
            expected[:, layer] = own
            latents = ours.ask()
            np.testing.assert_array_equal(latents, expected.reshape(N, -1))
            strategy.tell(list(own), losses(latents).tolist())
            ours.tell(latents, losses(latents))
            best[layer] = strategy.result.xbest
    np.testing.assert_array_equal(ours.mean, best.ravel())
    assert losses(ours.mean[None]) < losses(np.zeros((1, L * D)))


def settings(model, queries=90, **sections):
    return shared_config(
        {
            "name": "deep",
            "seed": 1,
            "data": {"k": 4},
            "method": {"name": "bbtv2"},
            "model": {"name": str(model), "options": {"precision": "fp32", "device": "cpu"}},
            "evaluation": {"rows": 20},
            "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2, "alpha": 3},
            "optimizer": {"population_size": 4},
            "budget": {"queries": queries, "dev_every": 16},
            "selection": {"baselines": False, "n_best": 1, "by": "loss"},
            **sections,
        }
    )


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    return run(settings(tiny_folder("bert")), tmp_path_factory.mktemp("runs"))


def test_the_search_lowers_the_training_loss(finished):
    losses = np.array([event["losses"] for event in events(finished.folder, "generation")])
    assert losses.shape == (2 * 10, 4)  # G = (90 - 2 screened - 1 measured) // (population 4 x 2 layers) rounds
    assert losses[-2:].min() < losses[:2].min() - 0.05
    assert losses[-2:].mean() < losses[:2].mean()


def test_both_layers_are_tuned_and_saved(finished):
    prompt = SoftPrompt.load(finished.folder)
    assert prompt.embeddings.shape == (2, 3, 32)
    assert np.abs(prompt.embeddings[1]).max() > 0
    assert finished.result["n_parameters"] == 2 * 8
    assert set(finished.result["test"]) == {"manual", "manual calibrated", "untuned", "tuned"}


def test_a_stopped_search_goes_on_bit_for_bit(finished, tiny_folder, tmp_path):
    half = run(settings(tiny_folder("bert")), tmp_path)
    log = half.folder / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for keep in (1, 2, 3, 9, 20):
        (half.folder / "result.json").unlink()
        log.write_text("".join(lines[:keep]))
        again = resume(half.folder)
        assert again.result["test"] == finished.result["test"]
        assert again.result["cost"]["examples"] == finished.result["cost"]["examples"]
        prompts = [SoftPrompt.load(folder).embeddings.tobytes() for folder in (half.folder, finished.folder)]
        assert prompts[0] == prompts[1]


def test_an_extended_search_has_the_losses_of_the_larger_budget(tiny_folder, tmp_path):
    short = run(settings(tiny_folder("bert"), 50), tmp_path / "a").folder
    resume(short, 90)
    long = run(settings(tiny_folder("bert"), 90), tmp_path / "b").folder
    losses = [[event["losses"] for event in events(folder, "generation")] for folder in (short, long)]
    assert losses[0] == losses[1]


def test_released_code_placement_is_tuned_too(tiny_folder):
    prompt = {"n_prompt_tokens": 3, "intrinsic_dim": 8, "placement": "layernorm"}
    result = tune(settings(tiny_folder("bert"), 30, prompt=prompt)).result
    assert np.isfinite(result["selected"]["loss"])


def test_a_budget_below_one_round_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match=r"less than one round of bbtv2: 3 to begin with and 8"):
        tune(settings(tiny_folder("bert"), 10))


def test_a_backend_without_deep_prompts_is_refused():
    with pytest.raises(BackendError, match="needs deep prompts"):
        tune({"method": {"name": "bbtv2"}}, ToyBackend())
