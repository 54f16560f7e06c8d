"""Prompts tuned before: as a start, in a searched mixture, and attended to row by row (ATTEMPT)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import shared_config

from bbt.api import run, tune
from bbt.baselines.attempt import Mixture
from bbt.build import make_experiment
from bbt.errors import BackendError, PromptError
from bbt.methods import load_method
from bbt.methods.prompt_mixture import MixtureSearch
from bbt.methods.prompt_search import SoftSearch
from bbt.prompts.soft import SoftPrompt
from bbt.scoring.ledger import Ledger
from bbt.spaces.initial import saved_prompt
from bbt.tasks import Example
from bbt.testing import ToyBackend
from bbt.testing.toy import HIDDEN

T = 2


@pytest.fixture
def sources(tmp_path):
    """Two prompts of the toy model: their mean is 0.5 in every coordinate, its target is 1."""
    info, paths = ToyBackend().info, []
    for i, value in enumerate((0.0, 1.0)):
        embeddings = np.full((T, HIDDEN), value, np.float32)
        embeddings[0, 0] = 0.5
        prompt = SoftPrompt(embeddings, info.name, info.fingerprint, "{prompt} {text} {mask}", ("bad", "great"))
        paths.append(str(tmp_path / f"{i}.safetensors"))
        prompt.save(paths[-1])
    return paths


def settings(method, **sections):
    return shared_config(
        {
            "method": method,
            "data": {"k": 4},
            "prompt": {"n_prompt_tokens": T},
            "optimizer": {"name": "cma", "population_size": 8},
            "budget": {"queries": 160},
            "selection": {"baselines": False},
            **sections,
        }
    )


def test_the_mixture_is_searched_in_the_span_of_its_sources(sources):
    backend = ToyBackend()
    config = settings({"name": "prompt-mixture", "sources": sources})
    search = MixtureSearch(make_experiment(config, backend), load_method(config))
    loaded = np.concatenate([saved_prompt(Path(path), backend, T) for path in sources])
    np.testing.assert_allclose(search.space.prompts(np.eye(2)), loaded, atol=1e-6)
    np.testing.assert_allclose(search.space.prompts(np.zeros((1, 2)))[0], loaded.mean(axis=0))


def test_the_mixture_fits_better_than_its_sources(sources):
    # The toy scores all rows alike, so class biases would explain every prompt as well as any other.
    config = settings({"name": "prompt-mixture", "sources": sources}, calibration="none")
    search = MixtureSearch(make_experiment(config, ToyBackend()), load_method(config))
    trained = search.run()
    others = search.space.prompts(np.concatenate([np.zeros((1, 2)), np.eye(2)]))
    found, *known = search.objective.losses(np.concatenate([trained.classifier.prompt.batch, others]))
    assert found < min(known)
    assert trained.n_parameters == 2


def test_a_search_begins_with_the_prompt_tuned_before(sources):
    """Nothing is screened, and the untuned prompt that dev judges is the one given."""
    prompt = {"n_prompt_tokens": T, "init": sources[1], "n_screened": 5}
    config = settings({"name": "black-box"}, prompt=prompt)
    experiment = make_experiment(config, ToyBackend())
    search = SoftSearch(experiment, load_method(config))
    np.testing.assert_array_equal(search.space.p0[0], SoftPrompt.load(Path(sources[1])).embeddings)
    assert experiment.ledger.train_queries == 0


def test_another_models_or_anothers_placement_is_refused(sources, tmp_path):
    config = settings({"name": "black-box"}, prompt={"n_prompt_tokens": T, "init": sources[0]})
    with pytest.raises(PromptError, match="was tuned for toy"):
        tune(config, ToyBackend(target=2.0))
    longer = settings({"name": "black-box"}, prompt={"n_prompt_tokens": 5, "init": sources[0]})
    with pytest.raises(PromptError, match=r"Set prompt\.n_prompt_tokens"):
        tune(longer, ToyBackend())


def test_attention_is_the_papers():
    """Written out with loops: keys and words are maxima over tokens, the temperature is H e."""
    torch.manual_seed(0)
    sources, target, words = torch.randn(3, T, HIDDEN), torch.randn(T, HIDDEN), torch.randn(5, HIDDEN)
    mixture = Mixture(sources, target, bottleneck=6)
    prompts = [*sources, target]
    for row, found in zip(words, mixture(words), strict=True):
        hidden = mixture.down.weight @ row
        query = mixture.norm(mixture.up.weight @ (hidden * torch.sigmoid(hidden)))
        weights = torch.stack([prompt.max(dim=0).values @ query for prompt in prompts]) / (HIDDEN * math.e)
        weights = weights.exp() / weights.exp().sum()
        expected = target + sum(w * prompt for w, prompt in zip(weights, prompts, strict=True))
        torch.testing.assert_close(found, expected)
    assert {name for name, _ in mixture.named_parameters()} == {
        "target", "down.weight", "up.weight", "norm.weight", "norm.bias",
    }  # fmt: skip


@pytest.fixture
def attempt(tiny_folder, tmp_path):
    model = {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}}
    shared = {
        "model": model,
        "prompt": {"n_prompt_tokens": T, "intrinsic_dim": 4, "n_screened": 1},
        "evaluation": {"rows": 20},
    }
    sources = [
        str(run(settings({"name": "black-box"}, **shared, seed=seed, budget={"queries": 8}), tmp_path).folder)
        for seed in (1, 2)
    ]
    own = {"name": "attempt", "sources": sources, "steps": 30, "learning_rate": 0.02}
    return run(settings(own, **shared, selection={"by": "loss"}, calibration="none"), tmp_path)


def test_a_row_is_scored_under_its_own_prompt(attempt, monkeypatch):
    """As the forward-only backend scores that row alone under the prompt that the mixture makes for it."""
    classifier = attempt.classifier
    examples = [Example(text, 0) for text in ("a film", "the plot is bad", "great , it was slow")]
    prompts = classifier.mixture(classifier.pooled_words(examples)).detach().numpy()
    assert np.abs(prompts[0] - prompts[1]).max() > 1e-5
    ledger = Ledger()
    found = classifier.scores(examples, ledger)
    assert ledger.bytes_down == found.nbytes == 4 * found.size
    backend, task = classifier.backend, classifier.task
    for row, prompt, example in zip(found, prompts, examples, strict=True):
        encoded = backend.encode(task.rows([example], T), task.label_words)
        np.testing.assert_allclose(row, backend.label_scores(prompt[None], encoded)[0, 0], atol=1e-4)
    monkeypatch.setattr("bbt.baselines.attempt.ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(classifier.scores(examples, Ledger()), found, atol=1e-5)


def test_attempt_learns_and_keeps_its_sources(attempt):
    torch.manual_seed(0)
    experiment = make_experiment(attempt.config, attempt.classifier.backend)
    method = load_method(attempt.config)
    subject = method.subject(experiment, experiment.backend.trainable())
    rows = range(8)
    optimizer, losses = torch.optim.Adam(subject.parameters, 0.02), []
    for _ in range(20):
        losses.append(subject.loss.of(rows).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in subject.parameters)
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    for path, kept in zip(method.sources, subject.trained().mixture.sources, strict=True):
        np.testing.assert_array_equal(SoftPrompt.load(Path(path)).embeddings, kept)


def test_attempt_needs_gradients(sources):
    with pytest.raises(BackendError, match="attempt needs gradients"):
        tune(settings({"name": "attempt", "sources": sources}), ToyBackend())
