"""The gradient side of the local backend: the same logits as the forward side, and their true gradient."""

import numpy as np
import pytest
import torch
from reference import normalised
from test_local_backend import SAME_FOR_BOTH, TEXTS
from tiny_models import ARCHITECTURES

from bbt.scoring.losses import cross_entropy

every_architecture = pytest.mark.parametrize("name", [*ARCHITECTURES, "t5", "bart"])
every_case = pytest.mark.parametrize("case", SAME_FOR_BOTH.values(), ids=SAME_FOR_BOTH)
LABELS = np.array([0, 1, 0, 1, 1, 0, 1])
WORDS = ["bad", "great"]


@every_architecture
@every_case
def test_logits_are_those_of_the_forward_path(name, case, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), random_prompts(1, case.n_tokens)
    model = backend.trainable()
    encoded = model.encode(case.rows(), WORDS)
    logits = model.logits(encoded, range(len(TEXTS)), torch.from_numpy(prompts[0]))
    expected = backend.label_scores(prompts, backend.encode(case.rows(), WORDS))[0]
    np.testing.assert_allclose(logits.detach(), expected, atol=2e-5)
    if not case.n_tokens:
        np.testing.assert_allclose(model.scores(encoded), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "bart"])
def test_the_prompt_s_gradient_is_the_slope_of_the_forward_only_backend(name, tiny_backend, random_prompts):
    case, backend = SAME_FOR_BOTH["two places"], tiny_backend(name)
    prompt, rows = random_prompts(1, 5), backend.encode(case.rows(), WORDS)
    gradient = gradient_of(backend, case, prompt[0])
    length = np.linalg.norm(gradient)
    for seed in range(4):
        random = np.random.default_rng(seed).standard_normal(gradient.shape)
        direction = gradient / length + (0.3 * seed) * random / np.linalg.norm(random)
        steps = 0.02 * np.array([-2, -1, 1, 2])
        losses = cross_entropy(backend.label_scores(prompt + steps[:, None, None] * direction, rows), LABELS)
        slope = losses @ [1, -8, 8, -1] / (12 * 0.02)  # central differences of fourth order
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-3)


def gradient_of(backend, case, prompt):
    model, leaf = backend.trainable(), torch.from_numpy(prompt.copy()).requires_grad_()
    logits = model.logits(model.encode(case.rows(), WORDS), range(len(TEXTS)), leaf)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
    return leaf.grad.numpy().astype(np.float64)


def test_a_copy_can_be_spoiled_without_harm_to_the_backend(tiny_backend, random_prompts):
    backend, case = tiny_backend("bert"), SAME_FOR_BOTH["before"]
    rows, prompts = backend.encode(case.rows(), WORDS), random_prompts(2, 5)
    expected = backend.label_scores(prompts, rows)
    for weight in backend.trainable().model.parameters():
        assert not weight.requires_grad
        weight.zero_()
    np.testing.assert_array_equal(backend.label_scores(prompts, rows), expected)


def test_a_half_precision_backend_trains_full_precision_weights(tiny_backend, random_prompts):
    case = SAME_FOR_BOTH["before"]
    found = []
    for precision in ("fp32", "bf16"):
        model = tiny_backend("bert", precision=precision).trainable()
        assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}
        prompt = torch.from_numpy(random_prompts(1, 5)[0])
        found.append(model.logits(model.encode(case.rows(), WORDS), range(len(TEXTS)), prompt).detach().numpy())
    full, half = (normalised(logits) for logits in found)
    assert 0 < np.abs(full - half).max() < 0.1


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_the_size_of_micro_batches_does_not_matter(name, tiny_backend):
    case, found = SAME_FOR_BOTH["no prompt"], []
    for token_budget in (1, 16384):
        model = tiny_backend(name, token_budget=token_budget).trainable()
        found.append(model.scores(model.encode(case.rows(), WORDS)))
    np.testing.assert_allclose(*found, atol=1e-5)
