"""What every backend keeps to, asked through the `Backend` protocol alone: a new one is tested by being listed."""

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
from serving import serving
from tiny_models import ARCHITECTURES, CAUSAL

from backends.http import HttpBackend
from backends.openai import VLLMBackend
from backends.pool import PoolBackend
from bbt.backend import Backend
from bbt.errors import BackendError, LabelWordError
from bbt.tasks.template import Template

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


def test_info_tells_the_truth_about_the_embeddings(backend):
    info, words = backend.info, backend.embed_ids(range(backend.info.vocab_size))[0]
    assert words.shape == (info.vocab_size, info.hidden_size)
    assert info.embedding_std == pytest.approx(words.std(), rel=1e-3)
    assert (info.n_layers, info.max_length, info.precision) == (2, 64, "float32")


def test_encoded_rows_are_counted(backend, encoded):
    empty = backend.encode(rows([""] * 4), WORDS)
    assert (encoded.n_examples, encoded.n_truncated) == (4, 0)
    assert encoded.n_tokens > empty.n_tokens > 4 * N_TOKENS


def test_scores_are_one_float32_a_candidate_row_and_word(backend, encoded):
    scores = backend.label_scores(prompts(backend, 3), encoded)
    assert (scores.shape, scores.dtype) == ((3, 4, 3), np.float32)
    assert np.isfinite(scores).all()


def test_scores_depend_on_candidate_row_and_word(backend, encoded):
    scores = backend.label_scores(prompts(backend, 3), encoded)
    assert all(scores.std(axis).min() > 1e-3 for axis in range(3))


def test_candidates_are_independent_of_each_other(backend, encoded):
    population = prompts(backend, 3)
    alone = [backend.label_scores(candidate[None], encoded)[0] for candidate in population]
    np.testing.assert_allclose(backend.label_scores(population, encoded), alone, atol=1e-5)


def test_the_same_call_gives_the_same_bits_and_leaves_its_input_alone(backend, encoded):
    population = prompts(backend, 3)
    first = backend.label_scores(population, encoded)
    np.testing.assert_array_equal(backend.label_scores(population, encoded), first)
    np.testing.assert_array_equal(population, prompts(backend, 3))


def test_any_memory_layout_will_do(backend, encoded):
    population = prompts(backend, 3)
    expected = backend.label_scores(population, encoded)
    frozen = np.asfortranarray(population.astype(np.float64))
    frozen.setflags(write=False)
    np.testing.assert_array_equal(backend.label_scores(frozen, encoded), expected)


def test_rows_without_a_prompt_take_empty_prompts(backend):
    encoded = backend.encode(rows(n_tokens=0), WORDS)
    assert backend.label_scores(prompts(backend, 1)[:, :0], encoded).shape == (1, 4, 3)


def test_a_prompt_of_words_scores_as_the_words_do(backend):
    text = "a film so bad that it was great"
    words = backend.embed_text(text)
    # The full stop in front: at the very start of a row, a byte-level word is another token than after a space.
    prompted, written = Template(". {prompt} . {text} It was {mask}"), Template(". {text_pair} . {text} It was {mask}")
    soft = backend.encode([prompted.render(t, "", words.shape[1]) for t in TEXTS], WORDS)
    hard = backend.encode([written.render(t, text, 0) for t in TEXTS], WORDS)
    assert soft.n_tokens == hard.n_tokens
    expected = backend.label_scores(words[:, :0], hard)
    np.testing.assert_allclose(backend.label_scores(words, soft), expected, atol=1e-5)


def test_ordinary_ids_are_drawable_and_leave_the_special_ones_out(backend):
    ids = backend.ordinary_ids()
    assert backend.embed_ids(ids).shape == (1, len(ids), backend.info.hidden_size)
    assert len(set(ids)) == len(ids) < backend.info.vocab_size


@pytest.mark.parametrize("change", [(0, 1, 0), (0, 0, 1), (0, -1, 0)])
def test_prompts_of_another_shape_are_refused(backend, encoded, change):
    shape = np.add((2, N_TOKENS, backend.info.hidden_size), change)
    with pytest.raises(BackendError, match=rf"expected \(n, {N_TOKENS}, {backend.info.hidden_size}\)"):
        backend.label_scores(np.zeros(shape, np.float32), encoded)


def test_one_prompt_without_its_population_axis_is_refused(backend, encoded):
    with pytest.raises(BackendError, match="expected"):
        backend.label_scores(prompts(backend, 1)[0], encoded)


def test_no_rows_are_refused(backend):
    with pytest.raises(BackendError, match="no rows"):
        backend.encode([], WORDS)


def test_a_label_word_of_several_tokens_is_refused_with_its_pieces(backend):
    with pytest.raises(LabelWordError, match=r"'badgreatly' is not one token of this model but \d+: \['"):
        backend.encode(rows(), ("bad", "badgreatly"))


def test_a_row_longer_than_the_model_is_cut_and_counted(backend):
    long, longer = ("great " * n for n in (80, 200))
    encoded = backend.encode(rows([long, "great", longer]), WORDS)
    assert encoded.n_truncated == 2
    scores = backend.label_scores(prompts(backend, 2), encoded)
    np.testing.assert_allclose(scores[:, 0], scores[:, 2], atol=1e-5)


def test_a_template_longer_than_the_model_is_refused_with_both_numbers(backend):
    longest = backend.info.max_length
    with pytest.raises(BackendError, match=rf"takes \d+ tokens, the model {longest}\. Take fewer prompt tokens"):
        backend.encode(rows(n_tokens=longest), WORDS)
