"""`bbt serve` as its clients and its operator meet it: who is let in, what is refused, what nobody may see."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest
import requests
from calling import ARRAY, BODY, ROWS, Caller, prompts, space
from serving import chunked, raw_request, serving

from backends.http import HttpBackend
from backends.serve.keys import HOUR, Account, Keys, Quota, QuotaError
from backends.serve.run import check_reach
from backends.wire import WireError, pack, unpack
from bbt.errors import ConfigError, EndpointError
from bbt.testing import ToyBackend

ALICE, BOB = "the key of alice, in full", "the key of bob, in full"
KEYS = Keys([("alice", Quota(key=ALICE)), ("bob", Quota(key=BOB))])


@pytest.fixture(scope="module")
def url():
    with serving(ToyBackend()) as address:
        yield address


@pytest.fixture
def caller(url):
    return Caller(url)


@pytest.fixture(scope="module")
def guarded():
    """A server with keys."""
    with serving(ToyBackend(), KEYS, embedded_tokens=6) as address:
        yield address


# What it answers


def test_prompts_and_latents_are_scored(caller):
    backend, rows = ToyBackend(), caller.rows()
    expected = backend.label_scores(prompts(), backend.encode(ROWS, ("no", "yes")))
    np.testing.assert_array_equal(unpack(caller.scores(rows, prompts()).content, 3, 2), expected)
    drawn, answer = space(caller)
    z = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    scores = unpack(caller.scores(rows, z, f"&space={answer.json()['id']}").content, 3, 2)
    np.testing.assert_array_equal(
        scores, backend.label_scores(drawn.prompts(z.astype(float)), backend.encode(ROWS, ("no", "yes")))
    )


def test_registering_again_gives_the_same_id(caller):
    assert caller.rows() == caller.rows()
    assert space(caller)[1].json() == space(caller)[1].json()


def test_another_projection_than_ours_is_a_conflict(caller):
    _, answer = space(caller, seed=5, checksum="0" * 64)
    assert (answer.status_code, answer.json()["error"]) == (409, "ConflictError")


def test_health_metrics_and_the_openapi_page(url, caller):
    caller.scores(caller.rows(), prompts())
    assert caller.get("/healthz").json() == {"alive": True}
    page = caller.get("/metrics").text
    assert 'bbt_requests_total{route="/v1/scores",status="200"}' in page
    assert "bbt_sequences_total" in page
    paths = caller.get("/openapi.json").json()["paths"]
    assert {"/v1/model", "/v1/rows", "/v1/spaces", "/v1/prompts", "/v1/scores", "/v1/embeddings"} <= set(paths)
    assert caller.get("/docs").ok


def test_nothing_answers_with_weights_or_gradients(caller):
    """Every route there is, named: a new one has to be thought about here."""
    paths = caller.get("/openapi.json").json()["paths"]
    asked = {"/v1/model", "/v1/tokens", "/v1/embeddings", "/v1/rows", "/v1/prompts", "/v1/spaces", "/v1/scores"}
    answers = {"/v1/pairs", "/v1/likelihoods", "/v1/contexts", "/v1/texts"}
    assert set(paths) == asked | answers | {"/healthz", "/metrics"}


# Who is let in


@pytest.mark.parametrize("path", ["/v1/model", "/v1/tokens", "/metrics", "/nothing"])
def test_without_a_key_there_is_nothing_but_health(guarded, path):
    for caller in (Caller(guarded), Caller(guarded, "the key of mallory"), Caller(guarded, ALICE[:-1])):
        answer = caller.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert Caller(guarded).get("/healthz").ok
    assert Caller(guarded, ALICE).get(path).status_code == (404 if path == "/nothing" else 200)


def test_one_keys_rows_prompts_and_spaces_are_unknown_to_another(guarded):
    alice, bob = Caller(guarded, ALICE), Caller(guarded, BOB)
    rows, its = alice.rows(), space(alice)[1].json()["id"]
    p0 = alice.post("/v1/prompts?n_prompt_tokens=2", data=pack(prompts(1)), headers=ARRAY).json()["id"]
    assert bob.scores(rows, prompts()).status_code == 404
    bobs = bob.rows()
    assert bob.scores(bobs, np.zeros((1, 3)), f"&space={its}").status_code == 404
    assert bob.scores(bobs, prompts(), f"&anchor={p0}").status_code == 404
    assert alice.scores(rows, np.zeros((1, 3)), f"&space={its}").ok


def test_word_embeddings_are_told_of_a_few_tokens_only(guarded):
    alice = Caller(guarded, ALICE)
    ask = lambda ids: alice.post("/v1/embeddings", json={"ids": ids})  # noqa: E731
    assert ask([1, 2, 3, 4]).ok
    assert ask([1, 2, 3, 4, 5, 6]).ok
    refused = ask([7])
    assert (refused.status_code, refused.json()["error"]) == (403, "ForbiddenError")
    assert ask([6, 1]).ok
    assert Caller(guarded, BOB).post("/v1/embeddings", json={"ids": [7]}).ok


def test_a_name_of_another_machine_is_refused_where_there_is_no_key(url):
    assert requests.get(url + "/v1/model", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-machine"])
def test_it_is_not_reachable_from_elsewhere_without_a_key(host):
    with pytest.raises(ConfigError, match="other machines can reach"):
        check_reach(host, Keys())
    check_reach(host, KEYS)


def test_the_command_refuses_before_it_loads_a_model(tmp_path):
    command = [sys.executable, "-m", "bbt.cli", "serve", str(tmp_path / "no model"), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give --keys FILE" in done.stderr


# What it is worth to them


@pytest.mark.parametrize(("what", "amount"), [("requests", 3), ("rows", 20), ("bytes", 1500)])
def test_a_used_up_quota_is_429_with_the_time_to_come_back(what, amount):
    keys = Keys([("alice", Quota(key=ALICE, **{what: amount})), ("bob", Quota(key=BOB))])
    with serving(ToyBackend(), keys) as address:
        alice, bob = Caller(address, ALICE), Caller(address, BOB)
        rows = alice.rows()
        assert alice.scores(rows, prompts()).ok
        answers = [alice.scores(rows, prompts()) for _ in range(8)]
        refused = [answer for answer in answers if not answer.ok]
        assert refused
        assert {answer.status_code for answer in refused} == {429}
        assert 3500 < int(refused[0].headers["Retry-After"]) <= 3601
        assert what in refused[0].json()["detail"]
        assert bob.scores(bob.rows(), prompts(20)).ok


def test_a_quota_is_whole_again_after_an_hour():
    now = [0.0]
    account = Account("alice", Quota(key=ALICE, rows=10), clock=lambda: now[0])
    account.charge(rows=10)
    with pytest.raises(QuotaError):
        account.charge(rows=1)
    now[0] = HOUR - 1
    with pytest.raises(QuotaError) as fault:
        account.charge(rows=1)
    assert fault.value.wait == pytest.approx(1.0)
    now[0] = HOUR
    account.charge(rows=10)


def test_a_client_does_not_wait_an_hour(monkeypatch):
    keys = Keys([("alice", Quota(key=ALICE, rows=5))])
    monkeypatch.setenv("ALICE", ALICE)
    with serving(ToyBackend(), keys) as address:
        backend = HttpBackend("toy", url=address, api_key_env="ALICE")
        encoded = backend.encode(ROWS, ("no", "yes"))
        with pytest.raises(EndpointError, match=r"0 of this key's 5 rows an hour .* come back in 3\d\d\d seconds"):
            backend.label_scores(prompts(), encoded)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("alice: {key: short}", "alice.key"),
        ("alice: {key: long enough a key, row: 5}", "alice.rows"),
        ("- alice", "expected YAML"),
        ("alice: [", "expected YAML"),
        ("{}", "at least one key"),
        ("a: {key: the same key of both}\nb: {key: the same key of both}", "each another one"),
    ],
)
def test_a_keys_file_that_is_none_is_refused(tmp_path, text, reason):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        Keys.read(path)


def test_a_keys_file_gives_everybody_his_account(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(f"alice: {{key: '{ALICE}', rows: 5}}\nbob: {{key: '{BOB}'}}\n")
    keys = Keys.read(path)
    assert [keys.account(key).name for key in (ALICE, BOB)] == ["alice", "bob"]
    assert keys.account("") is None


# What it refuses


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (lambda c: c.scores("0" * 16, prompts()), 404),
        (lambda c: c.scores("../../etc", prompts()), 422),
        (lambda c: c.post(f"/v1/scores?rows={c.rows()}", data=b""), 400),
        (lambda c: c.post(f"/v1/scores?rows={c.rows()}", data=pack(prompts())[:-1]), 400),
        (lambda c: c.post(f"/v1/scores?rows={c.rows()}", data=b"\0" * 100), 400),
        (lambda c: c.scores(c.rows(), np.zeros((0, 2, 4))), 422),
        (lambda c: c.scores(c.rows(), np.zeros((1025, 2, 4))), 422),
        (lambda c: c.scores(c.rows(), np.full((1, 2, 4), np.inf, np.float32)), 422),
        (lambda c: c.scores(c.rows(), prompts(), "&anchor=" + "0" * 16), 404),
        (lambda c: c.post("/v1/rows", json={**BODY, "rows": []}), 422),
        (lambda c: c.post("/v1/rows", json={**BODY, "label_words": []}), 422),
        (lambda c: c.post("/v1/rows", json={**BODY, "rows": BODY["rows"] * 400}), 422),
        (lambda c: c.post("/v1/rows", json={**BODY, "rows": [BODY["rows"][0][:-1]]}), 422),
        (lambda c: c.post("/v1/rows", json={**BODY, "rows": [[*BODY["rows"][0], {"kind": "mask"}]]}), 422),
        (
            lambda c: c.post(
                "/v1/rows", json={**BODY, "rows": [[{"kind": "prompt", "n_tokens": -2}, {"kind": "mask"}]]}
            ),
            422,
        ),
        (
            lambda c: c.post(
                "/v1/rows", json={**BODY, "rows": [[{"kind": "prompt", "n_tokens": 10**9}, {"kind": "mask"}]]}
            ),
            422,
        ),
        (lambda c: c.post("/v1/rows", json={**BODY, "rows": [BODY["rows"][0], [{"kind": "mask"}]]}), 422),
        (
            lambda c: c.post(
                "/v1/rows", json={**BODY, "rows": [[{"kind": "text", "text": "x" * 60_000}, {"kind": "mask"}]]}
            ),
            422,
        ),
        (
            lambda c: c.post(
                "/v1/rows", data=b'{"rows": [[{"kind": "text", "text": "\\ud800"}]], "label_words": ["a"]}'
            ),
            422,
        ),
        (lambda c: c.post("/v1/rows", data=b"[" * 100_000, headers={"Content-Type": "application/json"}), 400),
        (lambda c: c.post("/v1/spaces", data=b'{"scale": NaN}', headers={"Content-Type": "application/json"}), 422),
        (lambda c: c.post("/v1/prompts?n_prompt_tokens=2", data=pack(prompts(2))), 422),
        (lambda c: c.post("/v1/prompts?n_prompt_tokens=100000", data=pack(prompts(1))), 422),
        (lambda c: space(c, scale=1e308, checksum="0" * 64)[1], 422),
        (lambda c: space(c, intrinsic_dim=9_999_999, checksum="0" * 64)[1], 422),
        (lambda c: space(c, projection="orthonormal", d=100, checksum="0" * 64)[1], 422),
        (lambda c: c.post("/v1/embeddings", json={"ids": [50]}), 422),
        (lambda c: c.post("/v1/embeddings", json={"ids": [1], "text": "both"}), 422),
        (lambda c: c.post("/v1/embeddings", json={}), 422),
        (lambda c: c.post("/v1/rows", data=iter([b"{}"])), 411),
        (lambda c: c.post("/v1/rows", data=b"x" * (65 * 2**20)), 413),
        (lambda c: c.get("/v2/model"), 404),
        (lambda c: c.get("/v1/rows"), 405),
    ],
)
def test_a_bad_request_is_answered_with_what_is_wrong(caller, send, status):
    try:
        answer = send(caller)
    except requests.ConnectionError:
        assert status == 413  # refused before it was read: the rest of the body had nowhere to go
        return
    assert (answer.status_code, bool(answer.json()["detail"])) == (status, True)
    assert caller.scores(caller.rows(), prompts()).ok


def test_arrays_are_checked_on_both_ways():
    body = pack(prompts())
    np.testing.assert_array_equal(unpack(body, 2, 4), prompts())
    for damaged in (body[:-1], body + b"\0", b"", body[:50] + b"\1" + body[51:]):
        with pytest.raises(WireError):
            unpack(damaged, 2, 4)


# What it never begins


@pytest.mark.parametrize("lengths", [b"Content-Length: 2\r\n", b"Content-Length: 99999999999\r\n", b""])
def test_chunks_do_not_pass_the_limit_whatever_length_stands_beside_them(lengths):
    with serving(ToyBackend(), body_bytes=1024) as address:
        before = received(address)
        head = b"POST /v1/rows HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n" + lengths + b"\r\n"
        assert raw_request(address, head, *chunked(50 * 10**6)) in (400, 411, 413)
        assert received(address) - before < 2000
        assert Caller(address).get("/v1/model").ok


def received(address):
    page = Caller(address).get("/metrics").text
    return float(next(line for line in page.splitlines() if line.startswith("bbt_body_bytes_up_total")).split()[1])


@pytest.mark.parametrize("length", [b"-1", b"+5", b"0x10", b"\xb2", b"1, 2", b"9" * 50])
def test_a_length_that_is_no_number_is_refused(url, length):
    head = b"POST /v1/rows HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
    assert raw_request(url, head) == 400


def test_more_than_the_length_that_was_named_is_not_read():
    """Of a server in front that does not count: what goes through the gate is counted there."""
    from starlette.exceptions import HTTPException

    from backends.serve.gate import Gate
    from backends.serve.metrics import Metrics

    read = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(len(message["body"]))

    sent = iter([b"x" * 400] * 5)

    async def receive():
        return {"type": "http.request", "body": next(sent), "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/v1/rows", "headers": [(b"content-length", b"1000")]}
    with pytest.raises(HTTPException) as fault:
        asyncio.run(Gate(app, Keys(), Metrics(), 1024)(scope, receive, None))
    assert (fault.value.status_code, read) == (413, [400, 400])


class Telling(ToyBackend):
    """Keeps how many tokens it was asked to embed; a text has a token a word."""

    def __init__(self):
        super().__init__()
        self.embedded = []

    def embed_ids(self, token_ids):
        self.embedded.append(len(token_ids))
        return super().embed_ids(token_ids)

    def prompt_ids(self, text):
        return [len(word) for word in text.split()]

    def prompt_text(self, token_ids):
        raise NotImplementedError

    def hard_scores(self, token_ids, encoded):
        raise NotImplementedError


@pytest.mark.parametrize(
    "words", [{"ids": [1] * 3_000_000}, {"ids": list(range(50)) * 2}, {"text": "a " * 20_000}, {"text": "x " * 11}]
)
@pytest.mark.parametrize("most", [10, 10**6])
def test_no_more_tokens_are_embedded_than_one_may_be_told(words, most):
    backend = Telling()
    with serving(backend, embedded_tokens=most) as address:
        answer = Caller(address).post("/v1/embeddings", json=words)
    if words == {"text": "x " * 11} and most > 10:
        assert (answer.status_code, backend.embedded) == (200, [11])
    else:
        assert (answer.status_code, answer.json()["error"], backend.embedded) == (403, "ForbiddenError", [])


def test_rows_times_candidates_are_bounded(caller):
    many = {**BODY, "rows": BODY["rows"] * 300}
    rows = caller.post("/v1/rows", json=many).json()["id"]
    answer = caller.scores(rows, np.zeros((1000, 2, 4)))
    assert answer.status_code == 422
    assert "1000 candidates on 900 rows: at most 16384 sequences" in answer.json()["detail"]
    assert caller.scores(rows, np.zeros((18, 2, 4))).ok
