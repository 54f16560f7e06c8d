"""`bbt serve` for models that answer in several tokens, and for runs: keys, limits, metrics, and who goes away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import requests
from serving import FaultyProxy, ServerProcess, serving
from tiny_models import ENCODER_DECODER

import backends.transport
from backends.http import HttpBackend
from backends.local import LocalBackend
from backends.serve.keys import Keys, Quota
from backends.wire import MEDIA_TYPE, pack, unpack
from bbt.api import run
from bbt.backend import Decoding, Segment
from bbt.config import make_config
from bbt.errors import BackendError
from bbt.predictor import Predictor
from bbt.spaces.soft import PromptSpace, Recipe

ALICE, BOB = "the key of alice, in full", "the key of bob, in full"
ARRAY = {"Content-Type": MEDIA_TYPE}
ROWS = [
    (Segment("prompt", n_tokens=2), Segment("text", text), Segment("literal", " It was "), Segment("target", target))
    for text, target in (("a film", "bad film"), ("the plot", "great"), ("the plot", "not a good film , or worse ?"))
]
PAIRS = {"rows": [[asdict(segment) for segment in row] for row in ROWS]}
CONTEXTS = {**PAIRS, "max_new_tokens": 6}
DECODING = asdict(Decoding(6))


def prompts(n=2, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, (n, 2, 32)).astype(np.float32)


@pytest.fixture
def local(tiny_backend):
    return tiny_backend("gpt2")


def caller(url, key=ALICE):
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {key}"
    return lambda path, **how: session.post(f"{url}/v1/{path}", **how)


def registered(ask, route="pairs", body=PAIRS):
    return ask(route, json=body).json()["id"]


def sent(ask, prompt):
    return ask(f"prompts?n_prompt_tokens={prompt.shape[1]}", data=pack(prompt), headers=ARRAY).json()["id"]


@pytest.fixture
def guarded(local):
    keys = Keys([("alice", Quota(key=ALICE)), ("bob", Quota(key=BOB, rows=8))])
    with serving(local, keys) as url:
        yield url


def test_targets_and_texts_are_answered_behind_the_same_keys_and_counted(guarded, local):
    alice, bob = caller(guarded), caller(guarded, BOB)
    answer = alice("pairs", json=PAIRS).json()
    encoded = local.encode_pairs(ROWS)
    counts = {"n_examples": 3, "n_tokens": encoded.n_tokens, "n_truncated": 0}
    assert {**answer, **counts, "n_target_tokens": encoded.n_target_tokens.tolist()} == answer
    scored = alice(f"likelihoods?rows={answer['id']}", data=pack(prompts()), headers=ARRAY)
    np.testing.assert_array_equal(unpack(scored.content, 3), local.target_log_likelihoods(prompts(), encoded))
    contexts, prompt = registered(alice, "contexts", CONTEXTS), sent(alice, prompts(1))
    written = alice("texts", json={"rows": contexts, "prompt": prompt, "decoding": DECODING}).json()
    assert written["texts"] == local.generate(prompts(1), local.encode_contexts(ROWS, 6), Decoding(6))
    assert written["n_tokens"] == sum(len(local.prompt_ids(text)) for text in written["texts"]) > 0
    assert requests.post(f"{guarded}/v1/texts", json={}).status_code == 401
    assert bob(f"likelihoods?rows={answer['id']}", data=pack(prompts()), headers=ARRAY).status_code == 404
    assert bob("texts", json={"rows": contexts, "prompt": prompt, "decoding": DECODING}).status_code == 404
    page = requests.get(f"{guarded}/metrics", headers={"Authorization": f"Bearer {BOB}"}).text
    assert "bbt_sequences_total 9.0" in page  # two prompts on three rows, and three texts
    assert f"bbt_new_tokens_total {float(written['n_tokens'])}" in page
    assert 'bbt_requests_total{route="/v1/texts",status="200"} 1.0' in page


def test_a_used_up_quota_refuses_targets_and_texts(guarded):
    bob = caller(guarded, BOB)
    contexts = {"rows": registered(bob, "contexts", CONTEXTS), "prompt": sent(bob, prompts(1)), "decoding": DECODING}
    rows = registered(bob)
    assert bob("texts", json=contexts).ok
    assert bob(f"likelihoods?rows={rows}", data=pack(prompts(1)), headers=ARRAY).ok
    refused = (bob("texts", json=contexts), bob(f"likelihoods?rows={rows}", data=pack(prompts(1)), headers=ARRAY))
    assert [answer.status_code for answer in refused] == [429, 429]
    assert all(3500 < int(answer.headers["Retry-After"]) <= 3601 for answer in refused)


@pytest.mark.parametrize(
    ("limits", "send", "said"),
    [
        ({"rows": 2}, lambda ask: ask("pairs", json=PAIRS), "3 rows: at most 2 at once"),
        (
            {"sequences": 5},
            lambda ask: ask(f"likelihoods?rows={registered(ask)}", data=pack(prompts(2)), headers=ARRAY),
            "at most 5 sequences",
        ),
        ({"new_tokens": 17}, lambda ask: ask("contexts", json=CONTEXTS), "at most 17 in one request"),
        ({"beams": 2}, lambda ask: texts(ask, n_beams=3), "at most 2 beams"),
        ({"stops": 1}, lambda ask: texts(ask, stop=["a", "b"]), "1 stop strings"),
        ({}, lambda ask: texts(ask, stop=["a" * 201]), "of 200 characters"),
        ({}, lambda ask: texts(ask, max_new_tokens=7), "6 tokens at most after these rows"),
        ({}, lambda ask: texts(ask, n_beams=2, sample=True), "expected 1 where tokens are sampled"),
        ({}, lambda ask: texts(ask, temperature=0), "expected a number above 0"),
        ({}, lambda ask: ask("pairs", json={"rows": [PAIRS["rows"][0][:-1]]}), "exactly one target"),
        ({}, lambda ask: ask("pairs", json={"rows": [PAIRS["rows"][0][::-1]]}), "does not end in its target"),
        (
            {},
            lambda ask: ask(f"likelihoods?rows={registered(ask)}", data=pack(prompts() * np.nan), headers=ARRAY),
            "not all finite",
        ),
    ],
)
def test_what_is_too_much_or_no_good_is_refused_in_a_sentence(local, limits, send, said):
    with serving(local, **limits) as url:
        answer = send(caller(url))
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text


def texts(ask, **decoding):
    body = {"rows": registered(ask, "contexts", CONTEXTS), "prompt": sent(ask, prompts(1))}
    return ask("texts", json={**body, "decoding": {**DECODING, **decoding}})


class Stepping(LocalBackend):
    """A local backend that waits for a sign before it writes on some rows."""

    def __init__(self, local):
        self.__dict__.update(local.__dict__)
        self.go, self.asked = threading.Semaphore(0), []

    def generate(self, prompt, encoded, decoding):
        self.asked.append(encoded.n_examples)
        assert self.go.acquire(timeout=30)
        return super().generate(prompt, encoded, decoding)


def test_who_goes_away_ends_the_writing_that_is_under_way(local, monkeypatch):
    monkeypatch.setattr("backends.serve.service.WRITTEN_TOGETHER", 1)
    backend = Stepping(local)
    with serving(backend) as url:
        ask = caller(url)
        body = {"rows": registered(ask, "contexts", CONTEXTS), "prompt": sent(ask, prompts(1)), "decoding": DECODING}
        with pytest.raises(requests.ReadTimeout):
            ask("texts", json=body, timeout=0.3)
        time.sleep(0.3)
        backend.go.release(10)
        assert len(ask("texts", json=body).json()["texts"]) == 3
    assert backend.asked == [1, 1, 1, 1]  # one of the first request's, all of the second's


def space():
    return PromptSpace.drawn(prompts(1), Recipe(7, 12, "normal", 0.05))


def test_z_travels_for_targets_too_and_what_travels_is_counted(local, tiny_folder):
    its, z = space(), np.random.default_rng(1).standard_normal((8, 12))
    with serving(local) as url:
        remote = HttpBackend(str(tiny_folder("gpt2")), url=url)
        encoded = remote.encode_pairs(ROWS)
        remote.latent_log_likelihoods(z[:1], its, encoded)  # the space is sent with the first
        before = remote.traffic.bytes_up, remote.traffic.bytes_down
        found = remote.latent_log_likelihoods(z, its, encoded)
        up, down = remote.traffic.bytes_up - before[0], remote.traffic.bytes_down - before[1]
        assert 0 < up - 8 * 12 * 4 < 400
        assert 0 < down - 8 * len(ROWS) * 4 < 120
        written = remote.generate(prompts(1), remote.encode_contexts(ROWS, 6), Decoding(6))
        assert remote.traffic.tokens_down == sum(len(local.prompt_ids(text)) for text in written)
    expected = local.target_log_likelihoods(its.prompts(z), local.encode_pairs(ROWS))
    np.testing.assert_array_equal(found, expected)


def test_rows_beyond_the_limits_go_in_several_requests_and_those_of_a_context_together(local, tiny_folder):
    long = [(*ROWS[0][:1], Segment("text", "story " * 90), *row[2:]) for row in ROWS for _ in range(3)]
    rows = [*ROWS, *long]
    with serving(local, rows=4, new_tokens=12) as url:
        remote = HttpBackend(str(tiny_folder("gpt2")), url=url)
        pairs, contexts = remote.encode_pairs(rows), remote.encode_contexts(rows, 6)
        assert [part.known.n_examples for part in pairs.parts] == [3, 4, 4, 1]
        assert {part.known.n_examples for part in contexts.parts} == {1, 2}
        found = remote.target_log_likelihoods(prompts(), pairs)
        written = remote.generate(prompts(1), contexts, Decoding(6))
    whole = local.encode_pairs(rows)
    assert pairs.n_truncated == whole.n_truncated == contexts.n_truncated == 9
    np.testing.assert_allclose(found[:, :3], local.target_log_likelihoods(prompts(), whole)[:, :3], atol=1e-5)
    assert written == local.generate(prompts(1), local.encode_contexts(rows, 6), Decoding(6))


def test_targets_within_a_text_that_are_cut_alike_are_registered_together(tiny_backend, tiny_folder):
    """BART's decoder says again what stands left of the target, so that a long target leaves less of the text."""
    local = tiny_backend("bart")
    rows = [
        (Segment("prompt", n_tokens=2), Segment("text", text), Segment("literal", " It was "), *target)
        for text in ("a film", "story " * 90)
        for target in (
            (Segment("target", words), Segment("literal", " .")) for words in ("bad", "not a good film , or worse ?")
        )
    ]
    with serving(local, rows=3) as url:
        remote = HttpBackend(str(tiny_folder("bart")), url=url)
        pairs = remote.encode_pairs(rows)
        found = remote.target_log_likelihoods(prompts(), pairs)
    assert [part.known.n_examples for part in pairs.parts] == [2, 2]
    np.testing.assert_allclose(found, local.target_log_likelihoods(prompts(), local.encode_pairs(rows)), atol=1e-5)


@pytest.mark.parametrize("name", ENCODER_DECODER)
def test_an_encoder_decoder_is_asked_as_it_is_here(name, tiny_backend, tiny_folder):
    """Label words, and targets by z, wherever the prompt stands; and the same refusal of what has no place in it."""
    local = tiny_backend(name)
    asked = [
        (Segment("text", "a film"), Segment(kind, n_tokens=2), Segment("literal", " . It was "), Segment("mask"))
        for kind in ("prompt", "start")
    ]
    rows = [(*row[:-1], Segment("target", "great film")) for row in asked]
    its, z = space(), np.random.default_rng(1).standard_normal((4, 12))
    with serving(local) as url:
        remote = HttpBackend(str(tiny_folder(name)), url=url)
        assert remote.info == local.info
        words = ["bad", "great"]
        found = remote.latent_scores(z, its, remote.encode(asked, words))
        np.testing.assert_array_equal(found, local.label_scores(its.prompts(z), local.encode(asked, words)))
        likely = remote.latent_log_likelihoods(z, its, remote.encode_pairs(rows))
        np.testing.assert_array_equal(likely, local.target_log_likelihoods(its.prompts(z), local.encode_pairs(rows)))
        for decoding in (Decoding(6, ()), Decoding(6, (), n_beams=3), Decoding(6, (), sample=True, seed=3)):
            texts = remote.generate(its.p0, remote.encode_contexts(rows, 6), decoding)
            assert texts == local.generate(its.p0, local.encode_contexts(rows, 6), decoding)
        with pytest.raises(BackendError, match=r"use prompt\.placement: embedding"):
            remote.encode(asked, words, its.p0)
        if name == "bart":
            with pytest.raises(BackendError, match=r"300 new tokens were asked for; .* decoder has room for 63"):
                remote.encode_contexts(rows, 300)


def test_what_a_server_has_forgotten_is_registered_again_and_faults_pass(local, tiny_folder, monkeypatch):
    monkeypatch.setattr(backends.transport, "BACKOFF", 0.01)
    with serving(local, kept=2) as url, FaultyProxy(url) as proxy:
        remote, other = (HttpBackend(str(tiny_folder("gpt2")), url=proxy.url) for _ in range(2))
        pairs, contexts = remote.encode_pairs(ROWS), remote.encode_contexts(ROWS, 6)
        expected = remote.target_log_likelihoods(prompts(), pairs), remote.generate(prompts(1), contexts, Decoding(6))
        for n in (1, 2):
            other.encode_pairs(ROWS[:n])
            other.encode_contexts(ROWS[:n], 6)
            other.generate(prompts(1, seed=n), other.encode_contexts(ROWS[:n], 6), Decoding(6))
        np.testing.assert_array_equal(remote.target_log_likelihoods(prompts(), pairs), expected[0])
        assert remote.generate(prompts(1), contexts, Decoding(6)) == expected[1]


def test_several_threads_ask_one_client_for_targets_and_texts(local, tiny_folder):
    pairs, contexts = local.encode_pairs(ROWS), local.encode_contexts(ROWS, 6)
    expected = [
        (local.target_log_likelihoods(prompts(2, s), pairs), local.generate(prompts(1, s), contexts, Decoding(6)))
        for s in range(4)
    ]
    with serving(local) as url, ThreadPoolExecutor(4) as pool:
        remote = HttpBackend(str(tiny_folder("gpt2")), url=url)
        theirs, its = remote.encode_pairs(ROWS), remote.encode_contexts(ROWS, 6)

        def ask(seed):
            found = remote.target_log_likelihoods(prompts(2, seed), theirs)
            return found, remote.generate(prompts(1, seed), its, Decoding(6))

        for number, (found, written) in enumerate(pool.map(ask, [0, 1, 2, 3] * 4)):
            np.testing.assert_array_equal(found, expected[number % 4][0])
            assert written == expected[number % 4][1]


def test_a_text_too_many_is_the_backend_s_error(local, tiny_folder):
    with serving(local) as url:
        remote = HttpBackend(str(tiny_folder("gpt2")), url=url)
        with pytest.raises(BackendError, match="6 tokens at most after these rows"):
            remote.generate(prompts(1), remote.encode_contexts(ROWS, 6), Decoding(7))


# A run that is served


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """A run that classifies."""
    settings = {
        "task": {"name": "sst2"},
        "model": {"name": str(tiny_folder("bert")), "options": {"precision": "fp32", "device": "cpu"}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 8, "n_screened": 2},
        "optimizer": {"population_size": 4},
        "budget": {"queries": 10, "dev_every": 8},
        "selection": {"baselines": False},
        "evaluation": {"rows": 10},
    }
    return run(make_config(settings), tmp_path_factory.mktemp("runs")).folder


TEXTS = ["a film so bad that it was great", "I liked it", "the plot is worse ."]


def test_a_run_answers_with_labels_and_probabilities(folder):
    predictor = Predictor(folder)
    keys = Keys([("alice", Quota(key=ALICE)), ("bob", Quota(key=BOB, rows=4))])
    expected = predictor.predict(TEXTS)
    with serving(predictor.backend, keys, trained=predictor, rows=100, row_characters=60) as url:
        alice, bob = caller(url), caller(url, BOB)
        assert alice("classify", json={"texts": TEXTS}).json() == {"answers": expected}
        assert requests.post(f"{url}/v1/classify", json={"texts": TEXTS}).status_code == 401
        assert [bob("classify", json={"texts": TEXTS}).status_code for _ in range(2)] == [200, 429]
        for body, said in (
            ({"texts": TEXTS, "text_pairs": TEXTS}, "leave text_pairs out"),
            ({"texts": TEXTS, "text_pairs": TEXTS[:1]}, "give one a text"),
            ({"texts": ["a"] * 101}, "at most 100"),
            ({"texts": ["a" * 61]}, "the longest of 61 characters"),
            ({"texts": []}, "at least 1 item"),
            ({"texts": "a film"}, "valid list"),
        ):
            answer = alice("classify", json=body)
            assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text
        page = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {ALICE}"}).text
    assert "bbt_sequences_total 6.0" in page
    assert 'bbt_requests_total{route="/v1/classify",status="429"} 1.0' in page


def test_many_ask_a_run_at_once_and_the_model_is_served_beside_it(folder, tiny_folder):
    predictor = Predictor(folder)
    bodies = [{"texts": [text] * n} for text in TEXTS for n in (1, 70, 130)]
    expected = [predictor.predict(body["texts"]) for body in bodies]
    with serving(predictor.backend, trained=predictor) as url, ThreadPoolExecutor(8) as pool:
        remote = HttpBackend(str(tiny_folder("bert")), url=url)
        answers = list(pool.map(lambda body: caller(url)("classify", json=body).json()["answers"], bodies * 3))
        assert remote.embed_text("a film").shape[0] == 1
    for found, right in zip(answers, expected * 3, strict=True):
        assert [one["label"] for one in found] == [one["label"] for one in right]
        for one, other in zip(found, right, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_the_command_serves_a_run_as_its_config_has_it(folder):
    server = ServerProcess.of(folder).start()
    try:
        answer = caller(server.url)("classify", json={"texts": TEXTS})
    finally:
        server.kill()
    assert answer.json() == {"answers": Predictor(folder).predict(TEXTS)}


def test_a_model_alone_classifies_nothing(local):
    with serving(local) as url:
        assert caller(url)("classify", json={"texts": TEXTS}).status_code == 404
