"""Deep prompts: what plain transformers with a hook before each layer says, whatever was kept or shared."""

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch
from reference import Reference, normalised
from test_local_backend import BEFORE, MASKED_ONLY, SAME_FOR_BOTH, SENTIMENT, TEXTS
from tiny_models import ARCHITECTURES, CAUSAL, MASKED, save_tiny
from transformers.pytorch_utils import Conv1D

from bbt.errors import BackendError

N_LAYERS = 4
LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}
CASES = {
    **{f"{name}: {case}": (name, SAME_FOR_BOTH[case]) for name in ARCHITECTURES for case in SAME_FOR_BOTH},
    **{f"{name}: {case}": (name, MASKED_ONLY[case]) for name in MASKED for case in ("mask first", "prompt last")},
}
every_case = pytest.mark.parametrize(("name", "case"), CASES.values(), ids=CASES)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """As everywhere, but of four layers, so that there are several to share."""
    root = tmp_path_factory.mktemp("deep")
    return cache(lambda name: save_tiny(name, root / name, n_layers=N_LAYERS))


@pytest.fixture(scope="module")
def reference(tiny_folder):
    return cache(lambda name: Reference(tiny_folder(name), "causal" if name in CAUSAL else "masked"))


def population(random_prompts, n, shared_layers=0, n_tokens=5, seed=0):
    """(n, L, T, H) random deep prompts, the lowest layers of which are the same in all."""
    prompts = random_prompts(N_LAYERS * n, n_tokens, seed=seed).reshape(n, N_LAYERS, n_tokens, 32)
    prompts[:, :shared_layers] = prompts[:1, :shared_layers]
    return prompts


def expected(reference, name, case, prompts, texts=TEXTS):
    """Every candidate and row alone through the whole model."""
    scores = []
    for prompt in prompts:
        ids = [reference.ids(case.natural or case.template, case.shares, *pair) for pair in texts]
        scores.append([plain(reference, name, row, prompt, case.words) for row in ids])
    return np.array(scores)


def plain(reference, name, ids, prompt, words, collect=None):
    slots = torch.tensor(ids) == reference.tokenizer.convert_tokens_to_ids("<prompt-token>")

    def before(i):
        def add(module, args, kwargs):
            if collect is not None:
                collect[i].append(args[0][0].clone())
            if i:
                hidden = args[0].clone()
                hidden[0, slots] += torch.from_numpy(prompt[i])
                return (hidden, *args[1:]), kwargs
            return None

        return add

    with ExitStack() as stack:
        for i, layer in enumerate(reference.model.get_submodule(LAYERS[name])):
            stack.callback(layer.register_forward_pre_hook(before(i), with_kwargs=True).remove)
        return reference.log_probs(ids, prompt[0], words)


def scores(backend, case, prompts, texts=TEXTS):
    words = [word.strip() for word in case.words]
    return backend.deep_label_scores(prompts, backend.encode(case.rows(texts), words))


@every_case
@pytest.mark.parametrize("shared_layers", [0, 2, N_LAYERS])
def test_scores_are_those_of_a_plain_forward_with_hooks(
    name, case, shared_layers, tiny_backend, reference, random_prompts
):
    prompts = population(random_prompts, 2, shared_layers, case.n_tokens)
    found = normalised(scores(tiny_backend(name), case, prompts))
    np.testing.assert_allclose(found, expected(reference(name), name, case, prompts), atol=1e-4)


@every_architecture
def test_models_that_take_no_packed_rows_score_as_well(name, nothing_packed, tiny_backend, reference, random_prompts):
    backend, prompts = tiny_backend(name), population(random_prompts, 2, 2)
    found = normalised(scores(backend, BEFORE, prompts))
    np.testing.assert_allclose(found, expected(reference(name), name, BEFORE, prompts), atol=1e-4)


@every_architecture
def test_a_deep_prompt_matters(name, tiny_backend, random_prompts):
    found = scores(tiny_backend(name), BEFORE, population(random_prompts, 3, 1))
    assert found.std(0).max() > 0.01


@every_architecture
def test_without_deep_prompts_the_scores_are_those_of_label_scores(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), population(random_prompts, 3)
    prompts[:, 1:] = 0
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    found = backend.deep_label_scores(prompts, encoded)
    np.testing.assert_array_equal(found, backend.label_scores(prompts[:, 0], encoded))


@every_architecture
@pytest.mark.parametrize("token_budget", [1, 100, 1000])
def test_sharing_changes_nothing_however_the_work_is_cut(name, token_budget, tiny_backend, random_prompts):
    prompts = population(random_prompts, 6, 1)
    found = scores(tiny_backend(name, token_budget=token_budget), BEFORE, prompts)
    alone = [scores(tiny_backend(name), BEFORE, prompt[None])[0] for prompt in prompts]
    np.testing.assert_allclose(found, alone, atol=1e-5)


@every_architecture
def test_what_is_shared_is_computed_once_and_kept(name, tiny_backend, random_prompts):
    backend, prompts = tiny_backend(name), population(random_prompts, 4, 2)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    first = backend.deep_label_scores(prompts, encoded)
    computed = watch_layers(backend, name)
    again = backend.deep_label_scores(prompts, encoded)
    one = backend.deep_label_scores(prompts[1:2], encoded)
    assert computed == {2, 3}
    np.testing.assert_array_equal(again, first)
    np.testing.assert_allclose(one[0], first[1], atol=1e-5)


@every_architecture
def test_the_next_turn_goes_on_from_what_was_kept(name, tiny_backend, reference, random_prompts):
    backend = tiny_backend(name)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    prompts = population(random_prompts, 2, 3)
    lower = prompts.copy()
    lower[1, 1] += 1
    backend.deep_label_scores(lower, encoded)
    computed = watch_layers(backend, name)
    found = backend.deep_label_scores(prompts, encoded)
    assert computed == {1, 2, 3}
    np.testing.assert_allclose(normalised(found), expected(reference(name), name, BEFORE, prompts), atol=1e-4)


@every_architecture
def test_another_lower_part_is_not_mistaken_for_the_kept_one(name, tiny_backend, reference, random_prompts):
    backend = tiny_backend(name)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    for seed in (0, 1):
        prompts = population(random_prompts, 2, 2, seed=seed)
        found = backend.deep_label_scores(prompts, encoded)
        np.testing.assert_allclose(normalised(found), expected(reference(name), name, BEFORE, prompts), atol=1e-4)


@pytest.mark.parametrize("name", MASKED)
def test_the_anchor_belongs_to_what_is_shared(name, tiny_backend, random_prompts):
    backend, anchor = tiny_backend(name), random_prompts(1, 5, seed=1)
    encoded, prompts = backend.encode(BEFORE.rows(), SENTIMENT), population(random_prompts, 3, 1)
    plain = backend.deep_label_scores(prompts, encoded)
    anchored = backend.deep_label_scores(prompts, backend.encode(BEFORE.rows(), SENTIMENT, anchor))
    alone = [backend.deep_label_scores(p[None], backend.encode(BEFORE.rows(), SENTIMENT, anchor))[0] for p in prompts]
    assert np.abs(anchored - plain).max() > 0.01
    np.testing.assert_allclose(anchored, alone, atol=1e-5)


@every_architecture
def test_too_large_a_split_shares_nothing(name, tiny_backend, random_prompts, monkeypatch):
    prompts = population(random_prompts, 3, 1)
    shared = scores(tiny_backend(name), BEFORE, prompts)
    monkeypatch.setattr("backends.local.evaluation.KEPT_BYTES", 0)
    backend = tiny_backend(name)
    encoded = backend.encode(BEFORE.rows(), SENTIMENT)
    np.testing.assert_allclose(backend.deep_label_scores(prompts, encoded), shared, atol=1e-5)
    assert encoded.shared is None


@every_architecture
@pytest.mark.parametrize("token_budget", [1, 16384])
def test_hidden_stds_are_those_of_the_states_that_enter_each_layer(
    name, token_budget, tiny_backend, reference, random_prompts
):
    backend, prompts, collected = (
        tiny_backend(name, token_budget=token_budget),
        population(random_prompts, 1),
        [[] for _ in range(N_LAYERS)],
    )
    ids = [reference(name).ids(BEFORE.template, BEFORE.shares, *pair) for pair in TEXTS]
    for row in ids:
        plain(reference(name), name, row, prompts[0], BEFORE.words, collected)
    words = reference(name).model.get_input_embeddings().weight.detach().numpy()[: backend.info.vocab_size]
    states = [words, *(torch.cat(layer).detach().numpy() for layer in collected[1:])]
    found = backend.hidden_stds(prompts, backend.encode(BEFORE.rows(), SENTIMENT))
    np.testing.assert_allclose(found, [words.std(ddof=1), *map(clipped_std, states[1:])], rtol=1e-4)


def clipped_std(values):
    for _ in range(5):
        mean, std = values.mean(), values.std(ddof=1)
        values = np.clip(values, mean - 3 * std, mean + 3 * std)
    return values.std(ddof=1)


def test_deep_prompts_of_another_shape_are_refused(tiny_backend):
    with pytest.raises(BackendError, match=r"\(2, 3, 5, 32\), expected \(n, 4, 5, 32\)"):
        scores(tiny_backend("bert"), BEFORE, np.zeros((2, 3, 5, 32), np.float32))


def watch_layers(backend, name):
    """The set of layers that compute from now on."""
    computed = set()
    for i, layer in enumerate(backend.trunk.get_submodule(LAYERS[name].partition(".")[2])):
        inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear | Conv1D))
        inner.register_forward_pre_hook(lambda module, args, i=i: computed.add(i))
    return computed
