"""Hidden states and token likelihoods are those of plain transformers, one row at a time."""

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, CAUSAL

from bbt.backend import DeepBackend, FeatureBackend, LikelihoodBackend, require
from bbt.errors import BackendError
from bbt.tasks.template import Template

NATURAL = "{text} . It was {mask}"
TEXTS = ["a film", "the plot is bad and the acting is worse , it was slow", "great", "I liked it"]
WORDS = ("bad", "great")


@pytest.fixture(params=ARCHITECTURES)
def name(request):
    return request.param


@pytest.fixture
def backend(tiny_backend, name):
    return tiny_backend(name, token_budget=40)  # several micro-batches


@pytest.fixture
def encoded(backend):
    return backend.encode([Template(NATURAL).render(text, "", 0) for text in TEXTS], WORDS)


@torch.no_grad()
def test_features_are_the_last_hidden_states(backend, encoded, reference, name):
    plain = reference(name)
    for text, found in zip(TEXTS, backend.features(encoded), strict=True):
        ids = plain.ids(NATURAL, text=text)
        expected = plain.model.base_model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(torch.from_numpy(found.hidden_states), expected, rtol=1e-4, atol=1e-5)
        assert found.read == (len(ids) - 1 if name in CAUSAL else ids.index(plain.tokenizer.mask_token_id))


@torch.no_grad()
def test_a_causal_models_likelihoods_are_its_own_loss(tiny_backend, reference):
    backend, plain = tiny_backend("gpt2"), reference("gpt2")
    encoded = backend.encode([Template(NATURAL).render(text, "", 0) for text in TEXTS], WORDS)
    for text, found in zip(TEXTS, backend.token_log_likelihoods(encoded), strict=True):
        ids = torch.tensor([plain.ids(NATURAL, text=text)])
        assert len(found) == ids.shape[1] - 1
        assert -found.mean() == pytest.approx(plain.model(ids, labels=ids).loss.item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("masked", ["bert", "roberta"])
def test_a_masked_models_tokens_are_masked_in_turn(tiny_backend, reference, masked, monkeypatch):
    monkeypatch.setattr("backends.local.features.HEAD_TOKENS", 40)  # several batches a row
    backend, plain = tiny_backend(masked), reference(masked)
    encoded = backend.encode([Template(NATURAL).render(text, "", 0) for text in TEXTS], WORDS)
    mask, special = plain.tokenizer.mask_token_id, set(plain.tokenizer.all_special_ids)
    for text, found in zip(TEXTS, backend.token_log_likelihoods(encoded), strict=True):
        ids, expected = plain.ids(NATURAL, text=text), []
        for place, token in enumerate(ids):
            if token not in special:
                hidden = torch.tensor([[*ids[:place], mask, *ids[place + 1 :]]])
                expected.append(plain.model(hidden).logits[0, place].log_softmax(-1)[token].item())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capability", [DeepBackend, FeatureBackend, LikelihoodBackend])
def test_a_backend_without_the_capability_is_refused_in_a_sentence(capability, tiny_backend):
    from bbt.testing import ToyBackend

    with pytest.raises(BackendError, match=r"which ToyBackend does not offer; use model\.backend: local"):
        require(ToyBackend(), capability)
    assert require(backend := tiny_backend("bert"), capability) is backend
