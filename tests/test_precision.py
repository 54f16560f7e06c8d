"""Half precision where it ranks candidates as full precision does, and nowhere else."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from backends.local import LocalBackend, backend, precision
from backends.models import bundled_models
from bbt.tasks.template import Template

ROWS = [Template("{prompt} . {text} . It was {mask}").render(text, "", 5) for text in ("a slow film", "it was great")]


@pytest.fixture
def half_precision_chip(monkeypatch):
    """A chip on which `auto` may take bf16."""
    resolve = backend.resolve_precision
    monkeypatch.setattr(
        backend, "resolve_precision", lambda name, device: torch.bfloat16 if name == "auto" else resolve(name, device)
    )


def population_scores(model, prompts, anchor=None):
    return model.label_scores(prompts, model.encode(ROWS, ("bad", "great"), anchor))


@pytest.mark.parametrize("name", bundled_models())
def test_half_precision_ranks_the_candidates_of_a_bundled_model(name):
    half, full = (LocalBackend(name, precision=p, device="cpu") for p in ("bf16", "fp32"))
    assert precision.disagreement(half, full) is None


def test_rank_correlation_is_spearmans():
    a, b = np.random.default_rng(0).standard_normal((2, 30))
    assert precision.rank_correlation(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)


@pytest.mark.parametrize(("agreement", "kept"), [(-1.0, "bfloat16"), (1.1, "float32")])
def test_auto_goes_back_to_full_precision_where_ranks_disagree(
    agreement, kept, half_precision_chip, tiny_backend, random_prompts, monkeypatch, capsys
):
    monkeypatch.setattr(precision, "AGREEMENT", agreement)
    anchor, prompts = random_prompts(1, 5, seed=1), random_prompts(3, 5)
    found, expected = (
        tiny_backend("bert", precision="auto"),
        tiny_backend("bert", precision={"bfloat16": "bf16", "float32": "fp32"}[kept]),
    )
    population_scores(found, prompts[:1], anchor)
    assert found.info.precision == "bfloat16", "one candidate needs no ranking"
    np.testing.assert_array_equal(*(population_scores(model, prompts, anchor) for model in (found, expected)))
    assert found.info.precision == kept
    said = capsys.readouterr().err
    assert ("fp32 instead of bfloat16, its losses' rank correlation with fp32 is" in said) == (kept == "float32")


def test_a_model_that_cannot_be_compared_stays_in_full_precision(
    half_precision_chip, tiny_backend, random_prompts, monkeypatch, capsys
):
    monkeypatch.setattr(precision, "N_PROMPT_TOKENS", 100)  # more than the tiny model takes
    found = tiny_backend("bert", precision="auto")
    population_scores(found, random_prompts(2, 5))
    assert found.info.precision == "float32"
    assert "could not be compared with fp32: the template with its prompt takes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_head_of_a_half_precision_model_computes_in_fp32_while_it_scores(name, tiny_backend):
    model = tiny_backend(name, precision="bf16")._model
    kept = {id(w) for part in (model.base_model, model.get_output_embeddings()) for w in part.parameters()}
    heads = [w for w in model.parameters() if id(w) not in kept]
    states = torch.randn(3, 1, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        half = model(inputs_embeds=states).logits
        with precision.FullPrecisionHead(model).active():
            assert {w.dtype for w in heads} == {torch.float32}
            assert {w.dtype for w in model.base_model.parameters()} == {torch.bfloat16}
        assert {w.dtype for w in heads} == {torch.bfloat16}
        assert torch.equal(model(inputs_embeds=states).logits, half)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_head_rounds_nothing_while_it_scores(name, tiny_backend):
    backend = tiny_backend(name, precision="bf16")
    states, words = torch.randn(3, 1, 32).bfloat16(), torch.arange(20)
    put = lambda module, args, output: replace(output, last_hidden_state=states.to(module.dtype))  # noqa: E731
    exact = copy.deepcopy(backend._model).float()
    for model in (backend._model, exact):
        model.base_model.register_forward_hook(put)
    with torch.inference_mode():
        expected = exact(inputs_embeds=states.float()).logits[..., words]
        with backend._evaluator.forward.trunk.scoring(words):
            found = backend._model(inputs_embeds=states).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
