"""The same model through `backends/local` and through `bbt serve`: the same numbers, and few of them on the wire."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from serving import serving
from tiny_models import CAUSAL, HIDDEN

import bbt
from backends.http import HttpBackend
from bbt.backend import Traffic
from bbt.errors import BackendError, EndpointError, LabelWordError
from bbt.spaces.soft import PromptSpace, Recipe
from bbt.tasks.template import Template

TEMPLATE = Template("{prompt} . {text} . It was {mask}")
TEXTS = ["a film", "the plot is bad and the acting is worse , it was slow", "great", "I liked it"]
WORDS = ("bad", "great")
ROWS = [TEMPLATE.render(text, "", 5) for text in TEXTS]


@pytest.fixture(scope="module")
def pair(tiny_folder):
    """A local backend, and another behind a server: `bert`."""
    from backends.local import LocalBackend

    model = str(tiny_folder("bert"))
    with serving(LocalBackend(model, precision="fp32", device="cpu")) as url:
        yield LocalBackend(model, precision="fp32", device="cpu"), HttpBackend(model, url=url)


def space(projection="normal", d=12, scale=0.05):
    p0 = np.random.default_rng(1).normal(0, 0.2, (1, 5, HIDDEN)).astype(np.float32)
    return PromptSpace.drawn(p0, Recipe(7, d, projection, scale))


def latents(n=6, d=12):
    return np.random.default_rng(2).standard_normal((n, d))


def settings(model, seed=0, **options):
    return {
        "task": {"name": "sst2"},
        "seed": seed,
        "model": {"name": str(model), **options},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 20, "n_screened": 4},
        "optimizer": {"population_size": 6},
        "budget": {"queries": 30, "dev_every": 12},
        "selection": {"n_best": 2, "baselines": False},
        "evaluation": {"rows": 40},
    }


@pytest.mark.parametrize("name", ["bert", *CAUSAL])
def test_a_run_has_the_same_trajectory_as_through_the_local_backend(tiny_folder, tiny_backend, name):
    model = tiny_folder(name)
    local = bbt.tune(settings(model, options={"precision": "fp32", "device": "cpu"}))
    with serving(tiny_backend(name)) as url:
        remote = bbt.tune(settings(model, backend="http", options={"url": url}))
    assert remote.result["test"] == local.result["test"]
    assert remote.result["selected"] == local.result["selected"]
    assert remote.classifier.prompt.embeddings.tobytes() == local.classifier.prompt.embeddings.tobytes()
    ours, theirs = local.result["cost"], remote.result["cost"]
    for what in ("train_queries", "dev_queries", "examples", "truncated"):
        assert theirs[what] == ours[what]


@pytest.mark.parametrize("projection", ["uniform", "normal", "orthonormal"])
def test_latents_and_prompts_have_the_scores_of_the_local_backend(pair, projection):
    local, remote = pair
    its, z = space(projection), latents()
    expected = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS))
    encoded = remote.encode(ROWS, WORDS)
    np.testing.assert_array_equal(remote.latent_scores(z, its, encoded), expected)
    np.testing.assert_array_equal(remote.label_scores(its.prompts(z), encoded), expected)


def test_a_query_is_z_up_and_label_scores_down(pair):
    _, remote = pair
    its, encoded = space(d=100), remote.encode(ROWS, WORDS)
    remote.latent_scores(latents(1, 100), its, encoded)  # the space is sent with the first
    before = Traffic(remote.traffic.bytes_up, remote.traffic.bytes_down)
    remote.latent_scores(latents(20, 100), its, encoded)
    up, down = remote.traffic.bytes_up - before.bytes_up, remote.traffic.bytes_down - before.bytes_down
    assert 0 < up - 20 * 100 * 4 < 400
    assert 0 < down - 20 * len(TEXTS) * len(WORDS) * 4 < 120


def test_what_is_sent_once_is_no_part_of_the_traffic(pair):
    _, remote = pair
    before = remote.traffic.bytes_up
    remote.encode(ROWS, WORDS, space().p0)
    remote.embed_text("a film")
    assert remote.traffic.bytes_up == before


def test_an_anchor_is_where_the_local_backend_has_it(pair):
    local, remote = pair
    its, z = space(), latents()
    plain = remote.latent_scores(z, its, remote.encode(ROWS, WORDS))
    expected = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS, its.p0))
    np.testing.assert_array_equal(remote.latent_scores(z, its, remote.encode(ROWS, WORDS, its.p0)), expected)
    assert np.abs(plain - expected).max() > 1e-3
    np.testing.assert_array_equal(remote.latent_scores(z, its, remote.encode(ROWS, WORDS)), plain)


def test_a_server_started_anew_is_told_its_anchor_again(tiny_folder, tiny_backend):
    its, z, local = space(), latents(), tiny_backend("bert")
    expected = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS, its.p0))
    with serving(tiny_backend("bert")) as url:
        remote = HttpBackend(str(tiny_folder("bert")), url=url)
        encoded = remote.encode(ROWS, WORDS, its.p0)
        np.testing.assert_array_equal(remote.label_scores(its.prompts(z), encoded), expected)
        with serving(tiny_backend("bert")) as restarted:  # it knows nothing, as one that died
            client = HttpBackend(str(tiny_folder("bert")), url=restarted)._client
            remote._client = client
            np.testing.assert_array_equal(remote.label_scores(its.prompts(z), encoded), expected)


def test_a_model_that_can_have_no_anchor_says_so_at_once(tiny_folder, tiny_backend):
    with serving(tiny_backend("gpt2")) as url:
        remote = HttpBackend(str(tiny_folder("gpt2")), url=url)
        with pytest.raises(BackendError, match="LayerNorm"):
            remote.encode(ROWS, WORDS, space().p0)


def test_rows_and_candidates_beyond_the_limits_go_in_several_requests(tiny_folder, tiny_backend, pair):
    local, _ = pair
    its, z = space(), latents()
    with serving(tiny_backend("bert"), rows=3, candidates=4) as url:
        remote = HttpBackend(str(tiny_folder("bert")), url=url)
        encoded = remote.encode(ROWS, WORDS)
        scores = remote.latent_scores(z, its, encoded)
    whole = local.encode(ROWS, WORDS)
    assert (encoded.n_examples, encoded.n_tokens) == (whole.n_examples, whole.n_tokens)
    np.testing.assert_allclose(scores, local.label_scores(its.prompts(z), whole), atol=1e-5)


def test_requests_hold_as_many_sequences_as_the_server_takes(tiny_folder, tiny_backend, pair):
    local, _ = pair
    its, z = space(), latents()
    whole = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS))
    for limits in ({"sequences": 9}, {"sequences": 4}, {"sequences": 3}, {"sequences": 1}):
        with serving(tiny_backend("bert"), **limits) as url:
            remote = HttpBackend(str(tiny_folder("bert")), url=url)
            encoded = remote.encode(ROWS, WORDS)
            np.testing.assert_allclose(remote.latent_scores(z, its, encoded), whole, atol=1e-5)
            np.testing.assert_allclose(remote.label_scores(its.prompts(z), encoded), whole, atol=1e-5)


def test_word_embeddings_are_asked_for_once_a_token(pair):
    local, remote = pair
    for ids in ([7, 9, 7, 7, 8], [], [5] * 5000):
        np.testing.assert_array_equal(remote.embed_ids(ids), local.embed_ids(ids))


def test_several_threads_score_rows_with_anchors_and_spaces_of_their_own(pair):
    """Each against the local backend; more spaces than the server keeps, so that it forgets while others score."""
    local, remote = pair
    z = latents()
    spaces = [PromptSpace.drawn(space().p0 * np.float32(i), Recipe(i, 12, "normal", 0.05)) for i in range(1, 7)]

    def score(number):
        its = spaces[number % 6]
        anchor = its.p0 if number % 2 else None
        rows = ROWS[: 1 + number % 4]
        found = remote.latent_scores(z, its, remote.encode(rows, WORDS, anchor))
        return found, local_scores(its, rows, anchor)

    def local_scores(its, rows, anchor):
        with one_at_a_time:
            return local.label_scores(its.prompts(z), local.encode(rows, WORDS, anchor))

    one_at_a_time = threading.Lock()
    with ThreadPoolExecutor(4) as pool:
        for found, expected in pool.map(score, range(48)):
            np.testing.assert_array_equal(found, expected)


def test_a_server_that_keeps_less_than_is_in_use_says_what_to_raise(tiny_folder, tiny_backend, monkeypatch):
    with serving(tiny_backend("bert")) as url:
        remote = HttpBackend(str(tiny_folder("bert")), url=url)
        encoded = remote.encode(ROWS, WORDS)
        known = encoded.parts[0].known
        forgotten = replace(known, id="0" * 16)
        monkeypatch.setattr(remote._client, "register_rows", lambda *_: forgotten)
        encoded.parts[0].known = forgotten
        with pytest.raises(EndpointError, match=r"forgets what is registered .*--limit kept="):
            remote.label_scores(space().prompts(latents()), encoded)


def test_a_server_that_forgets_a_space_and_then_draws_another_is_sent_prompts(pair, tiny_folder, monkeypatch):
    local, _ = pair
    its, z = space(), latents()
    expected = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS))
    with serving(local, kept_spaces=1) as url:
        remote, other = (HttpBackend(str(tiny_folder("bert")), url=url) for _ in range(2))
        encoded = remote.encode(ROWS, WORDS)
        np.testing.assert_array_equal(remote.latent_scores(z, its, encoded), expected)
        other.latent_scores(z, space(d=12, scale=1.0), other.encode(ROWS, WORDS))  # in its place
        monkeypatch.setattr("backends.serve.service._draw", lambda p0, recipe: PromptSpace(p0, its.matrix * 2))
        with pytest.warns(UserWarning, match="Prompts are sent instead of z"):
            np.testing.assert_array_equal(remote.latent_scores(z, its, encoded), expected)
        np.testing.assert_array_equal(remote.latent_scores(z, its, encoded), expected)


def test_a_server_that_draws_another_projection_is_sent_prompts(pair):
    local, remote = pair
    its, z = space(), latents()
    forged = PromptSpace(its.p0, its.matrix * np.float32(1.5), its.recipe)  # as another maths library would have it
    encoded = remote.encode(ROWS, WORDS)
    expected = local.label_scores(forged.prompts(z), local.encode(ROWS, WORDS))
    with pytest.warns(UserWarning, match="Prompts are sent instead of z"):
        np.testing.assert_array_equal(remote.latent_scores(z, forged, encoded), expected)
    np.testing.assert_array_equal(remote.latent_scores(z, forged, encoded), expected)  # said once


def test_a_space_without_a_recipe_is_sent_as_prompts(pair):
    local, remote = pair
    its, z = PromptSpace(space().p0, space().matrix), latents()
    expected = local.label_scores(its.prompts(z), local.encode(ROWS, WORDS))
    np.testing.assert_array_equal(remote.latent_scores(z, its, remote.encode(ROWS, WORDS)), expected)


def test_errors_are_those_of_the_local_backend(pair):
    for backend in pair:
        with pytest.raises(LabelWordError, match=r"^label word 'badgreatly' is not one token of this model but"):
            backend.encode(ROWS, ("bad", "badgreatly"))
        with pytest.raises(BackendError, match=r"^the anchor has shape"):
            backend.encode(ROWS, WORDS, np.zeros((1, 5, HIDDEN + 1), np.float32))
        with pytest.raises(BackendError, match=r"^prompts have 5 tokens, the anchor 4\."):
            backend.encode(ROWS, WORDS, np.zeros((1, 4, HIDDEN), np.float32))


def test_prompts_that_are_not_finite_never_reach_the_model(pair):
    _, remote = pair
    encoded = remote.encode(ROWS, WORDS)
    with pytest.raises(BackendError, match="not all finite"):
        remote.label_scores(np.full((2, 5, HIDDEN), np.nan, np.float32), encoded)
    with pytest.raises(BackendError, match="not all finite"):
        remote.latent_scores(latents() * 1e38, space(scale=100.0), encoded)


def test_another_model_is_refused_with_both_names(pair, tiny_folder):
    with pytest.raises(BackendError, match=r"serves '.*bert', not 'roberta-large': set model.name"):
        HttpBackend("roberta-large", url=pair[1]._client.url)


def test_something_else_that_speaks_http_is_refused(tmp_path):
    import threading
    from http.server import HTTPServer, SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        with pytest.raises(EndpointError, match="no `bbt serve`: it answered 404"):
            HttpBackend(url=f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
