"""What every backend keeps to, asked through the `Backend` protocol alone: one that is not in `KINDS` fails a test."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import cycle

import numpy as np
import pytest
from serving import serving
from tiny_models import ARCHITECTURES, CAUSAL, ENCODER_DECODER

from backends import BACKENDS
from backends.http import HttpBackend
from backends.openai import VLLMBackend
from backends.pool import PoolBackend
from bbt.backend import Backend, Decoding, GenerationBackend, TargetBackend
from bbt.errors import BackendError, LabelWordError
from bbt.tasks.template import Template
from bbt.testing import (
    BACKEND_CHECKS,
    GENERATION_CHECKS,
    TARGET_CHECKS,
    ToyBackend,
    ToyRows,
    check_backend,
    check_reads_prompts_as_words,
)
from bbt.testing.toy import HIDDEN

TEMPLATE = Template("{prompt} . {text} . It was {mask}")
TEXTS = ["a film", "the plot is bad and the acting is worse , it was slow", "great", "I liked it"]
WORDS = ("bad", "great", "positive")
N_TOKENS = 5


@pytest.fixture(scope="module")
def server(tiny_folder):
    """name -> address of a server of that tiny model, and the name it serves."""
    from backends.local import LocalBackend

    with ExitStack() as stack:

        def start(name):
            model = str(tiny_folder(name))
            local = LocalBackend(model, precision="fp32", device="cpu")
            return stack.enter_context(serving(local, embedded_tokens=1_000_000)), model

        yield cache(start)


KINDS = [
    *((kind, name) for kind in ("local", "http", "pool") for name in ARCHITECTURES),
    *(("vllm", n) for n in CAUSAL),
    *((kind, name) for kind in ("local", "http", "pool") for name in ENCODER_DECODER),
]


@pytest.fixture(params=KINDS, ids="-".join)
def backend(request, tiny_backend, server, serve, tiny_folder) -> Backend:
    kind, name = request.param
    if kind == "vllm":
        return VLLMBackend(str(tiny_folder(name)), url=serve(name, max_length=65).url)
    if kind == "local":
        return tiny_backend(name)
    url, model = server(name)
    if kind == "http":
        return HttpBackend(model, url=url)
    return PoolBackend(model, endpoints=[{"url": url}, {"url": url}])


@pytest.fixture
def encoded(backend):
    return backend.encode(rows(), WORDS)


def rows(texts=TEXTS, n_tokens=N_TOKENS):
    return [TEMPLATE.render(text, "", n_tokens) for text in texts]


def prompts(backend, n, seed=0):
    shape = (n, N_TOKENS, backend.info.hidden_size)
    return np.random.default_rng(seed).normal(0, backend.info.embedding_std, shape).astype(np.float32)


def test_every_backend_of_ours_is_among_those_that_are_tested():
    elsewhere = {"text-api": "no vectors can be sent there: test_text_api.py", "ray": "test_ray_population.py"}
    assert {kind for kind, _ in KINDS} | set(elsewhere) == set(BACKENDS)


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
def test_every_backend_keeps_the_contract(backend, check):
    check(backend, WORDS)


def test_a_prompt_of_words_scores_as_the_words_do(backend):
    check_reads_prompts_as_words(backend, WORDS)


WRITING_KINDS = [(kind, name) for kind, name in KINDS if name in CAUSAL + ENCODER_DECODER]


@pytest.mark.parametrize("backend", WRITING_KINDS, ids="-".join, indirect=True)
@pytest.mark.parametrize("check", TARGET_CHECKS, ids=lambda check: check.__name__)
def test_every_backend_of_a_model_that_writes_scores_targets(backend, check):
    assert isinstance(backend, TargetBackend)
    check(backend)


@pytest.mark.parametrize("backend", WRITING_KINDS, ids="-".join, indirect=True)
@pytest.mark.parametrize("check", GENERATION_CHECKS, ids=lambda check: check.__name__)
def test_every_backend_of_a_model_that_writes_writes(backend, check):
    assert isinstance(backend, GenerationBackend)
    check(backend)


@pytest.mark.parametrize("backend", WRITING_KINDS, ids="-".join, indirect=True)
def test_every_backend_says_of_targets_and_texts_what_the_local_one_does(backend, tiny_backend, request):
    kind, name = request.node.callspec.params["backend"]
    local, rows = tiny_backend(name), answered(("bad", "bad film", "great", "I liked it", "story\n"), N_TOKENS)
    mine = prompts(backend, 3)
    found, expected = (b.target_log_likelihoods(mine, b.encode_pairs(rows)) for b in (backend, local))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for decoding in (Decoding(8), Decoding(8, stop=("o",)), Decoding(8, sample=True, seed=3)):
        if decoding.sample and kind == "vllm":
            continue  # it draws by a generator of its own
        texts = [b.generate(mine[:1], b.encode_contexts(rows, 8), decoding) for b in (backend, local)]
        assert texts[0] == texts[1]
    manual = answered(("bad film", "great"), 0)
    found, expected = (b.target_log_likelihoods(mine[:1, :0], b.encode_pairs(manual)) for b in (backend, local))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    texts = [b.generate(mine[:1, :0], b.encode_contexts(manual, 8), Decoding(8)) for b in (backend, local)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["local", "http", "pool"])
def test_a_masked_model_says_that_it_can_do_neither(kind, tiny_backend, server):
    url, model = server("bert")
    made = {
        "local": lambda: tiny_backend("bert"),
        "http": lambda: HttpBackend(model, url=url),
        "pool": lambda: PoolBackend(model, endpoints=[{"url": url}]),
    }
    backend, rows = made[kind](), answered(("bad",), N_TOKENS)
    with pytest.raises(BackendError, match=r"only a causal LM .* scores targets"):
        backend.encode_pairs(rows)
    with pytest.raises(BackendError, match=r"only a causal LM .* generates text"):
        backend.encode_contexts(rows, 4)


def answered(targets, n_tokens):
    template = Template("{prompt} {source} . It was {target}")
    return [template.render(text, "", n_tokens, target) for text, target in zip(cycle(TEXTS), targets, strict=False)]


def test_the_toy_backend_keeps_the_contract():
    check_backend(ToyBackend(), WORDS)
    check_backend(ToyBackend())


def test_info_tells_what_the_tiny_models_are(backend):
    info = backend.info
    assert (info.n_layers, info.max_length, info.precision) == (2, 64, "float32")


def test_scores_depend_on_candidate_row_and_word(backend, encoded):
    scores = backend.label_scores(prompts(backend, 3), encoded)
    assert all(scores.std(axis).min() > 1e-3 for axis in range(3))


def test_a_label_word_of_several_tokens_is_refused_with_its_pieces(backend):
    with pytest.raises(LabelWordError, match=r"'badgreatly' is not one token of this model but \d+: \['"):
        backend.encode(rows(), ("bad", "badgreatly"))


def test_a_template_longer_than_the_model_is_refused_with_both_numbers(backend):
    longest = backend.info.max_length
    with pytest.raises(BackendError, match=rf"takes \d+ tokens, the model {longest}\. Take fewer prompt tokens"):
        backend.encode(rows(n_tokens=longest), WORDS)


class Faulty(ToyBackend):
    """A toy backend with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        if fault == "spread":
            self.info = replace(self.info, embedding_std=0.2)

    def encode(self, rows, label_words, anchor=None):
        if self.fault == "no rows" and not rows:
            return ToyRows([], N_TOKENS)
        encoded = super().encode(rows, label_words, anchor)
        return replace(encoded, n_truncated=0) if self.fault == "uncounted" else encoded

    def label_scores(self, prompts, encoded):
        if self.fault == "any shape":
            prompts = np.resize(prompts, (len(prompts), encoded.n_prompt_tokens, HIDDEN))
        if self.fault == "strict layout" and not prompts.flags.c_contiguous:
            prompts = prompts + 1
        scores = super().label_scores(prompts, encoded)
        if self.fault == "writes" and prompts.size:
            prompts[0, 0, 0] += 1
        if self.fault == "neighbours":
            return scores - scores.mean(axis=0) / 2 * np.arange(encoded.n_labels, dtype=np.float32)
        if self.fault == "rows alike":
            return np.repeat(scores[:, :1], encoded.n_examples, axis=1)
        drift = np.float32(self.n_calls) * np.arange(encoded.n_labels, dtype=np.float32)
        return scores + drift if self.fault == "drifts" else scores


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("spread", r"embedding_std is 0\.2"),
        ("no rows", "no rows at all: expected a BackendError"),
        ("uncounted", "n_truncated of two long rows: expected 2, got 0"),
        ("any shape", "expected a BackendError, but it was accepted"),
        ("strict layout", "read-only float64 prompts in Fortran order score otherwise"),
        ("writes", "label_scores has changed the prompts"),
        ("neighbours", "alone and in a population differ by"),
        ("rows alike", "the scores do not depend on the row"),
        ("drifts", "alone and in a population differ by"),
    ],
)
def test_a_fault_is_found_and_told_in_a_sentence(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_backend(Faulty(fault))
