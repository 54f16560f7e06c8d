"""The line of `bbt serve`: requests wait, are joined, computed in parts, and end when whoever asked has gone."""

import concurrent.futures
import signal
import threading
import time

import numpy as np
import pytest
import requests
from calling import ARRAY, ROWS, Caller, prompts, space
from serving import ServerProcess, serving

from backends.wire import pack, unpack
from bbt.testing import ToyBackend


class SlowBackend(ToyBackend):
    """Waits for a sign before every scoring; keeps the sizes of the populations it was given."""

    def __init__(self):
        super().__init__()
        self.go, self.begun, self.populations = threading.Event(), threading.Event(), []

    def label_scores(self, prompts, encoded):
        self.begun.set()
        assert self.go.wait(30)
        self.populations.append(len(prompts))
        return super().label_scores(prompts, encoded)


def in_line(url, backend, n, more="", waiting=None):
    """n requests sent at once, the first one being computed; their futures."""
    caller = Caller(url)
    rows = caller.rows()
    pool = concurrent.futures.ThreadPoolExecutor(n)
    first = pool.submit(caller.scores, rows, prompts(1), more)
    assert backend.begun.wait(10)
    rest = [pool.submit(Caller(url).scores, rows, prompts(2, seed), more) for seed in range(1, n)]
    deadline = time.monotonic() + 10
    while f"bbt_waiting_requests {float(waiting or n - 1)}" not in caller.get("/metrics").text:
        assert time.monotonic() < deadline
    return [first, *rest]


def test_a_full_line_is_429_with_retry_after_and_the_rest_is_answered():
    backend = SlowBackend()
    with serving(backend, queue=2) as address:
        futures = in_line(address, backend, 6, waiting=2)
        while sum(future.done() for future in futures) < 3:
            time.sleep(0.01)
        backend.go.set()
        answers = [future.result() for future in futures]
    states = sorted(answer.status_code for answer in answers)
    assert states == [200] * 3 + [429] * 3
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 429)


@pytest.mark.parametrize(("more", "populations"), [("", [1, 2, 2, 2]), ("&join=true", [1, 6])])
def test_requests_on_the_same_rows_are_joined_if_they_agree_to_it(more, populations):
    backend = SlowBackend()
    with serving(backend) as address:
        futures = in_line(address, backend, 4, more)
        backend.go.set()
        answers = [unpack(future.result().content, 3, 2) for future in futures]
    assert backend.populations == populations
    plain = ToyBackend()
    encoded = plain.encode(ROWS, ("no", "yes"))
    for seed, scores in enumerate(answers[1:], 1):
        np.testing.assert_array_equal(scores, plain.label_scores(prompts(2, seed), encoded))


def test_one_that_is_not_finite_does_not_spoil_those_it_is_joined_with():
    backend = SlowBackend()
    with serving(backend) as address:
        caller = Caller(address)
        rows = caller.rows()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            first = pool.submit(caller.scores, rows, prompts(1), "&join=true")
            assert backend.begun.wait(10)
            bad = pool.submit(Caller(address).scores, rows, np.full((1, 2, 4), np.nan), "&join=true")
            good = pool.submit(Caller(address).scores, rows, prompts(1), "&join=true")
            time.sleep(0.3)
            backend.go.set()
            assert [future.result().status_code for future in (first, bad, good)] == [200, 422, 200]


def test_who_goes_away_is_not_computed_for():
    backend = SlowBackend()
    with serving(backend) as address:
        caller = Caller(address)
        rows = caller.rows()
        first = in_line(address, backend, 1, waiting=0.0)[0]
        with pytest.raises(requests.ReadTimeout):
            caller.post(f"/v1/scores?rows={rows}", data=pack(prompts(7)), headers=ARRAY, timeout=0.3)
        time.sleep(0.2)
        backend.go.set()
        first.result()
        assert caller.scores(rows, prompts(5)).ok
    assert backend.populations == [1, 5]


class Stepping(ToyBackend):
    """Waits for a sign before every part; keeps the sizes of the parts."""

    def __init__(self):
        super().__init__()
        self.go, self.parts = threading.Semaphore(0), []

    def label_scores(self, prompts, encoded):
        self.parts.append(len(prompts))
        assert self.go.acquire(timeout=30)
        return super().label_scores(prompts, encoded)


@pytest.fixture
def short_parts(monkeypatch):
    """Two candidates a part on `ROWS`, which have twelve tokens."""
    monkeypatch.setattr("backends.serve.device.PART_TOKENS", 24)


def test_a_population_is_computed_in_parts_and_answered_whole(short_parts):
    backend, plain = Stepping(), ToyBackend()
    backend.go.release(10)
    with serving(backend) as address:
        caller = Caller(address)
        scores = unpack(caller.scores(caller.rows(), prompts(5)).content, 3, 2)
    assert backend.parts == [2, 2, 1]
    np.testing.assert_array_equal(scores, plain.label_scores(prompts(5), plain.encode(ROWS, ("no", "yes"))))


def test_who_goes_away_ends_what_is_under_way(short_parts):
    backend = Stepping()
    with serving(backend) as address:
        caller = Caller(address)
        rows = caller.rows()
        with pytest.raises(requests.ReadTimeout):
            caller.post(f"/v1/scores?rows={rows}", data=pack(prompts(100)), headers=ARRAY, timeout=0.3)
        time.sleep(0.3)
        backend.go.release(10)
        assert caller.scores(rows, prompts(1)).ok
    assert backend.parts == [2, 1]


def test_who_stays_is_answered_though_one_that_he_is_joined_with_goes_away(short_parts):
    backend, plain = Stepping(), ToyBackend()
    with serving(backend) as address, concurrent.futures.ThreadPoolExecutor(1) as pool:
        caller, other = Caller(address), Caller(address)
        rows, more = caller.rows(), "&join=true"
        first = pool.submit(Caller(address).scores, rows, prompts(1))
        while not backend.parts:
            time.sleep(0.01)
        with concurrent.futures.ThreadPoolExecutor(1) as second:
            stays = second.submit(other.scores, rows, prompts(3), more)
            while "bbt_waiting_requests 1.0" not in caller.get("/metrics").text:
                time.sleep(0.01)
            threading.Timer(0.3, backend.go.release).start()  # the first one's
            with pytest.raises(requests.ReadTimeout):
                caller.post(f"/v1/scores?rows={rows}{more}", data=pack(prompts(9)), headers=ARRAY, timeout=1.0)
            time.sleep(0.3)
            backend.go.release(10)
            scores = unpack(stays.result().content, 3, 2)
        assert first.result().ok
    np.testing.assert_array_equal(scores, plain.label_scores(prompts(3), plain.encode(ROWS, ("no", "yes"))))
    assert backend.parts == [1, 2, 1]  # of his three, and of the nine none


def test_who_goes_away_makes_room_in_the_line():
    backend = SlowBackend()
    with serving(backend, queue=2) as address:
        caller = Caller(address)
        rows = caller.rows()
        first, second = in_line(address, backend, 2)
        for _ in range(4):
            with pytest.raises(requests.ReadTimeout):
                caller.post(f"/v1/scores?rows={rows}", data=pack(prompts(7)), headers=ARRAY, timeout=0.3)
            time.sleep(0.2)
        backend.go.set()
        assert first.result().ok
        assert second.result().ok
    assert backend.populations == [1, 2]


def test_prompts_are_made_for_one_part_at_a_time(short_parts, monkeypatch):
    """1,024 latents of a few numbers each would else become gigabytes of prompts at once."""
    from bbt.spaces.soft import PromptSpace

    made, whole = [], PromptSpace.prompts
    monkeypatch.setattr(PromptSpace, "prompts", lambda space, z: made.append(len(z)) or whole(space, z))
    with serving(ToyBackend()) as address:
        caller = Caller(address)
        its = space(caller)[1].json()["id"]
        assert caller.scores(caller.rows(), np.zeros((5, 3)), f"&space={its}").ok
    assert made == [2, 2, 1]


def test_a_fault_of_the_model_is_500_and_the_next_request_is_answered():
    class Broken(ToyBackend):
        def label_scores(self, prompts, encoded):
            if len(prompts) == 2:
                raise RuntimeError("oops")
            return super().label_scores(prompts, encoded)

    with serving(Broken()) as address:
        caller = Caller(address)
        assert caller.scores(caller.rows(), prompts(2)).status_code == 500
        assert caller.scores(caller.rows(), prompts(3)).ok


def test_it_finishes_what_it_has_begun():
    """SIGTERM to a real process, one request being computed and one in line: both are answered before it ends."""
    server = ServerProcess.toy(seconds=1.0).start()
    try:
        rows = Caller(server.url).rows()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(Caller(server.url).scores, rows, prompts()) for _ in range(2)]
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert [future.result().status_code for future in futures] == [200, 200]
        assert server.process.wait(30) == -signal.SIGTERM  # uvicorn's way of ending in order
        assert not server.healthy()
    finally:
        server.kill()
