"""Half precision where it ranks candidates as full precision does, and nowhere else; settled once."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_models import DEVICE

import bbt
from backends.local import LocalBackend, backend, precision
from backends.local.frozen import FrozenModel, Source
from backends.local.head import Head
from backends.local.structure import structure_of
from backends.models import bundled_models
from bbt.api import resume
from bbt.config import make_config
from bbt.tasks.template import Template

ROWS = [Template("{prompt} . {text} . It was {mask}").render(text, "", 5) for text in ("a slow film", "it was great")]
WORDS = ("bad", "great")


@pytest.fixture
def half_precision_chip(monkeypatch):
    """A chip on which `auto` may take bf16."""
    resolve = backend.resolve_precision
    monkeypatch.setattr(
        backend, "resolve_precision", lambda name, device: torch.bfloat16 if name == "auto" else resolve(name, device)
    )


def population_scores(model, prompts, anchor=None):
    return model.label_scores(prompts, model.encode(ROWS, WORDS, anchor))


@pytest.mark.parametrize("name", bundled_models())
def test_half_precision_ranks_the_candidates_of_a_bundled_model(name):
    source = Source(name, None, torch.device(DEVICE), None, 4096)
    half, full = (FrozenModel(source, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert precision.disagreement(half, full) is None


def test_rank_correlation_is_spearmans():
    a, b = np.random.default_rng(0).standard_normal((2, 30))
    assert precision.rank_correlation(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)


def test_auto_takes_half_precision_where_ranks_agree(half_precision_chip, tiny_backend, random_prompts, monkeypatch):
    monkeypatch.setattr(precision, "AGREEMENT", -1.0)
    found, expected = (tiny_backend("bert", precision=p) for p in ("auto", "bf16"))
    anchor, prompts = random_prompts(1, 5, seed=1), random_prompts(3, 5)
    assert found.info == expected.info
    np.testing.assert_array_equal(*(population_scores(model, prompts, anchor) for model in (found, expected)))


def test_auto_goes_back_to_full_precision_where_ranks_disagree(
    half_precision_chip, tiny_backend, random_prompts, monkeypatch
):
    monkeypatch.setattr(precision, "AGREEMENT", 1.1)
    with pytest.warns(UserWarning, match="fp32 instead of bfloat16, its losses' rank correlation with fp32 is"):
        found = tiny_backend("bert", precision="auto")
    expected, prompts = tiny_backend("bert"), random_prompts(3, 5)
    assert found.info == expected.info
    np.testing.assert_array_equal(*(population_scores(model, prompts) for model in (found, expected)))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "there is no memory to compare it with fp32"),
        (MemoryError(), "there is no memory to compare it with fp32"),
        (RuntimeError('"sqrt" not implemented for\n BFloat16'), 'the model refuses it: "sqrt" not implemented for'),
    ],
)
def test_a_model_that_has_no_half_precision_stays_in_full(
    error, reason, half_precision_chip, tiny_backend, random_prompts, monkeypatch
):
    load = precision.FrozenModel

    def fail(source, dtype):
        if dtype is torch.bfloat16:
            raise error
        return load(source, dtype)

    monkeypatch.setattr(precision, "FrozenModel", fail)
    with pytest.warns(UserWarning, match=rf"^precision auto: fp32 instead of bfloat16, {reason}\.$"):
        found = tiny_backend("bert", precision="auto")
    assert found.info.precision == "float32"
    assert np.isfinite(population_scores(found, random_prompts(2, 5))).all()


def test_a_model_that_cannot_be_compared_stays_in_full_precision(half_precision_chip, tiny_backend, monkeypatch):
    monkeypatch.setattr(precision, "N_PROMPT_TOKENS", 100)  # more than the tiny model takes
    with pytest.warns(UserWarning, match="could not be compared with fp32: the template with its prompt takes"):
        found = tiny_backend("bert", precision="auto")
    assert found.info.precision == "float32"


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_spread_of_word_embeddings_is_the_same_in_every_precision(name, half_precision_chip, tiny_backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever the trial says
        stds = {tiny_backend(name, precision=p).info.embedding_std for p in ("fp32", "bf16", "auto")}
    assert len(stds) == 1


@pytest.mark.parametrize("agreement", [-1.0, 1.1])
@pytest.mark.filterwarnings("ignore:precision auto")
def test_a_resumed_run_is_the_same_to_the_last_bit(agreement, half_precision_chip, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "AGREEMENT", agreement)
    settings = {
        "task": {"name": "sst2", "label_words": ["bad", "great"]},
        "data": {"k": 4},
        "model": {"name": str(tiny_folder("bert")), "options": {"device": DEVICE}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 10, "n_screened": 1},
        "optimizer": {"population_size": 6},
        "budget": {"queries": 24, "dev_every": 12},
        "evaluation": {"rows": 8},
    }
    whole = bbt.tune(settings)
    part = bbt.api.run(make_config({**settings, "budget": {"queries": 12, "dev_every": 12}}), tmp_path)
    start = json.loads((part.folder / "events.jsonl").read_text().splitlines()[0])
    goes_on = resume(part.folder, queries=24)
    assert start["info"]["precision"] == goes_on.result["precision"] == whole.result["precision"]
    assert start["info"]["embedding_std"] == LocalBackend(str(tiny_folder("bert")), device=DEVICE).info.embedding_std
    found, expected = goes_on.classifier.prompt.embeddings, whole.classifier.prompt.embeddings
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_head_rounds_nothing(name, tiny_backend):
    """What stands between trunk and decoder is in fp32, and the model's own stays in half precision."""
    model, words = tiny_backend(name, precision="bf16").model, torch.arange(20, device=DEVICE)
    exact, states = copy.deepcopy(model).float(), torch.randn(3, 32, device=DEVICE).bfloat16()
    expected = Head(exact, structure_of(exact), whole=True).of(words)(states.float())
    found = Head(model, structure_of(model)).of(words)(states)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
