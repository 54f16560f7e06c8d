"""Against real servers, where there are any: the bundled gpt2-mini behind vLLM and behind llama.cpp.

    vllm serve backends/models/gpt2-mini --served-model-name gpt2-mini --enable-prompt-embeds --dtype float32
    BBT_TEST_VLLM_URL=http://127.0.0.1:8000 pytest tests/test_live_endpoints.py

    python -m llama_cpp.server --model gpt2-mini.gguf --model_alias gpt2-mini --logits_all True   # fp32
    BBT_TEST_LLAMA_CPP_URL=http://127.0.0.1:8000 pytest tests/test_live_endpoints.py

BBT_TEST_VLLM_PLAIN_URL is a vLLM without --enable-prompt-embeds. The servers must be yours: one test sends what they
refuse. None sends NaN, which would poison vLLM for everybody.
"""

import os

import numpy as np
import pytest

from backends.local import LocalBackend
from backends.openai import TextBackend, VLLMBackend
from bbt.api import tune
from bbt.config import make_config
from bbt.errors import EndpointError
from bbt.export import export
from bbt.scoring.losses import log_softmax
from bbt.tasks.configured import make_split, make_task

CONFIG = {
    "task": {"name": "sst2", "label_words": ["bad", "great"]},
    "model": {"name": "gpt2-mini", "options": {"precision": "fp32", "device": "cpu"}},
    "budget": {"queries": 60, "dev_every": 20},
    "selection": {"baselines": False},
    "evaluation": {"rows": 100},
}


def address(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return os.environ[variable]


@pytest.fixture
def vllm():
    return lambda **options: VLLMBackend("gpt2-mini", **{"url": address("BBT_TEST_VLLM_URL"), "retries": 1, **options})


@pytest.fixture(scope="module")
def local():
    return LocalBackend("gpt2-mini", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def problem():
    config = make_config(CONFIG)
    task = make_task(config.task, "causal")
    return task, make_split(config.data, task, 0).train


def encoded(backend, problem, n_tokens):
    task, examples = problem
    return backend.encode(task.rows(examples, n_tokens), task.label_words)


def prompts(backend, n, n_tokens):
    info = backend.info
    return np.random.default_rng(0).normal(0, info.embedding_std, (n, n_tokens, info.hidden_size)).astype(np.float32)


def difference(scores, expected):
    return float(np.abs(log_softmax(scores) - log_softmax(expected)).max())


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("n_tokens", [5, 32])
def test_vllm_gives_the_local_label_log_probabilities(one_by_one, n_tokens, vllm, local, problem):
    remote = vllm()
    remote._completions.one_by_one = one_by_one
    population = prompts(local, 4, n_tokens)
    expected = local.label_scores(population, encoded(local, problem, n_tokens))
    assert difference(remote.label_scores(population, encoded(remote, problem, n_tokens)), expected) < 1e-4


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 5e-2)])
def test_vllm_takes_halves(precision, tolerance, vllm, local, problem):
    remote, population = vllm(precision=precision), prompts(local, 2, 5)
    expected = local.label_scores(population, encoded(local, problem, 5))
    assert difference(remote.label_scores(population, encoded(remote, problem, 5)), expected) < tolerance


def test_vllm_gives_the_same_search():
    here = tune(CONFIG).result
    served = {"backend": "vllm", "name": "gpt2-mini", "options": {"url": address("BBT_TEST_VLLM_URL")}}
    there = tune({**CONFIG, "model": served}).result
    assert there["selected"]["loss"] == pytest.approx(here["selected"]["loss"], abs=1e-3)
    assert there["test"]["untuned"] == pytest.approx(here["test"]["untuned"], abs=0.011)
    assert there["test"]["tuned"] == pytest.approx(here["test"]["tuned"], abs=0.03)


def test_the_lines_of_an_export_ask_vllm_for_the_numbers_of_bbt(local, tmp_path, monkeypatch):
    from pages import TEXTS, run_page
    from test_export import assert_same, classifier_of, probabilities_of

    ours, url = classifier_of(local, prompts(local, 1, 5)[0]), address("BBT_TEST_VLLM_URL")
    export(ours, local, "vllm", tmp_path)
    served = {"http://localhost:8000": url, '"model": facts["model"]': '"model": "gpt2-mini"'}
    for text, expected in zip(TEXTS[:3], probabilities_of(ours, TEXTS[:3]), strict=True):
        assert_same(run_page(tmp_path, monkeypatch, text, **served)[0], expected, tolerance=1e-4)


def test_vllm_scores_words_by_token_ids(vllm, local, problem):
    remote, ids = vllm(), np.array([local.prompt_ids("a great film , really")])
    expected = local.hard_scores(ids, encoded(local, problem, ids.shape[1]))
    assert difference(remote.hard_scores(ids, encoded(remote, problem, ids.shape[1])), expected) < 1e-4


def test_vllm_as_a_text_only_api_that_is_asked_for_answers(problem):
    options = {"scores": "answers", "n_answers": 3, "answer_tokens": 4}
    remote = TextBackend("gpt2-mini", url=address("BBT_TEST_VLLM_URL"), **options)
    scores = remote.hard_scores(np.zeros((1, 0), np.int64), encoded(remote, problem, 0))
    assert np.isfinite(scores).all()
    assert remote.traffic.tokens_down > len(problem[1])


def test_vllm_refuses_what_it_cannot_take_and_goes_on(vllm, local, problem):
    remote = vllm()
    with pytest.raises(EndpointError, match="unknown model 'other'"):
        vllm(served_name="other")
    with pytest.raises(EndpointError, match="maximum context length"):
        remote._completions.log_probs([[5] * 5000], [1, 2])
    broken = prompts(local, 2, 5)
    broken[0, 0, 0] = np.nan
    scores = remote.label_scores(broken, encoded(remote, problem, 5))
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()
    assert np.isfinite(remote.label_scores(prompts(local, 1, 5), encoded(remote, problem, 5))).all()


def test_a_vllm_without_the_flag_says_which():
    with pytest.raises(EndpointError, match="--enable-prompt-embeds"):
        VLLMBackend("gpt2-mini", url=address("BBT_TEST_VLLM_PLAIN_URL"), retries=1)


def test_llama_cpp_gives_the_local_label_log_probabilities(local, problem):
    url = address("BBT_TEST_LLAMA_CPP_URL")
    remote = TextBackend("gpt2-mini", url=url, top_logprobs=local.info.vocab_size, concurrency=1, retries=1)
    ids = np.array([local.prompt_ids("a great film , really")])
    expected = local.hard_scores(ids, encoded(local, problem, ids.shape[1]))
    scores = remote.hard_scores(ids, encoded(remote, problem, ids.shape[1]))
    # Tokens are told apart by their text there: "great", " great" and " Great" count together.
    assert difference(scores, expected) < 0.05
    assert remote.info.precision == "listed log-probabilities"


def test_llama_cpp_is_asked_in_chat_too(problem):
    url = address("BBT_TEST_LLAMA_CPP_URL")
    remote = TextBackend("gpt2-mini", url=url, api="chat", concurrency=1, retries=1)
    task, examples = problem
    rows = remote.encode(task.rows(examples[:3], 0), task.label_words)
    assert np.isfinite(remote.hard_scores(np.zeros((1, 0), np.int64), rows)).all()
    assert remote.info.precision == "listed log-probabilities"
