"""Several endpoints of one model: who computes what makes no difference, and one that fails none either."""

import threading
import time
import warnings

import numpy as np
import pytest
from serving import FaultyProxy, ServerProcess, free_port, serving
from toy import TASK

import backends.pool.member
import backends.transport
from backends.pool import PoolBackend
from backends.pool.round import Round
from bbt.errors import BackendError, ConfigError, EndpointError
from bbt.spaces.soft import PromptSpace, Recipe
from bbt.tasks import Example
from bbt.testing import ToyBackend

ROWS = TASK.rows([Example(str(number), 1) for number in (1.5, -0.5, 3)], 2)
WORDS = ("no", "yes")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(backends.transport, "BACKOFF", 0.01)
    monkeypatch.setattr(backends.pool.member, "SHORTEST_PAUSE", 0.05)


class Slow(ToyBackend):
    """Takes its time over every candidate; keeps how many it was asked for."""

    def __init__(self, seconds=0.0, **options):
        super().__init__(**options)
        self.seconds, self.scored = seconds, 0

    def label_scores(self, prompts, encoded):
        time.sleep(self.seconds)
        self.scored += len(prompts)
        return super().label_scores(prompts, encoded)


def population(n=12):
    return np.random.default_rng(0).standard_normal((n, 2, 4)).astype(np.float32)


def expected(prompts):
    backend = ToyBackend()
    return backend.label_scores(prompts, backend.encode(ROWS, WORDS))


def pool(*urls, **options):
    return PoolBackend("toy", endpoints=[{"url": url} for url in urls], **options)


def test_the_candidates_are_shared_out_and_come_back_in_order():
    first, second = Slow(0.02), Slow(0.02)
    with serving(first) as a, serving(second) as b:
        both = pool(a, b)
        scores = both.label_scores(population(), both.encode(ROWS, WORDS))
    np.testing.assert_array_equal(scores, expected(population()))
    assert min(first.scored, second.scored) >= 4
    assert both.traffic.bytes_up > 12 * 2 * 4 * 4


def test_latents_travel_to_endpoints_that_hold_the_space():
    its = PromptSpace.drawn(population(1), Recipe(3, 5, "normal", 0.3))
    z = np.random.default_rng(1).standard_normal((6, 5))
    with serving(ToyBackend()) as a, serving(ToyBackend()) as b:
        both = pool(a, b, at_once=2)
        scores = both.latent_scores(z, its, both.encode(ROWS, WORDS))
    np.testing.assert_array_equal(scores, np.concatenate([expected(its.prompts(part)) for part in np.split(z, 3)]))


def test_a_slow_endpoint_does_less_and_holds_nobody_up():
    slow, quick = Slow(3.0), Slow()
    with serving(slow) as a, serving(quick) as b:
        both = pool(a, b)
        encoded = both.encode(ROWS, WORDS)
        start = time.monotonic()
        scores = both.label_scores(population(), encoded)
        seconds = time.monotonic() - start
    np.testing.assert_array_equal(scores, expected(population()))
    assert seconds < 3.0
    assert quick.scored > slow.scored


def test_a_dead_endpoint_is_left_aside():
    with serving(ToyBackend()) as alive:
        both = pool(f"http://127.0.0.1:{free_port()}", alive)
        encoded = both.encode(ROWS, WORDS)
        for _ in range(3):
            np.testing.assert_array_equal(both.label_scores(population(), encoded), expected(population()))


def test_a_faulty_endpoint_comes_back():
    with serving(Slow(0.01)) as a, serving(Slow(0.01)) as b, FaultyProxy(b, ["dropped", "broken"] * 4) as proxy:
        both = pool(a, proxy.url)
        encoded = both.encode(ROWS, WORDS)
        for _ in range(40):
            np.testing.assert_array_equal(both.label_scores(population(), encoded), expected(population()))
            if proxy.seen > 30:
                break
    assert proxy.seen > 30


def test_an_endpoint_killed_in_mid_run_and_restarted_changes_nothing():
    """A real process: killed while it computes, back a while later."""
    server = ServerProcess.toy(seconds=0.02).start()
    try:
        with serving(Slow(0.02)) as other:
            both = pool(server.url, other)
            rows = both.encode(ROWS, WORDS)
            threading.Timer(0.1, server.kill).start()
            for _ in range(3):
                np.testing.assert_array_equal(both.label_scores(population(), rows), expected(population()))
            assert not server.healthy()
            server.start()
            before = both.traffic.bytes_down
            np.testing.assert_array_equal(both.label_scores(population(), rows), expected(population()))
        for _ in range(3):  # the restarted one alone
            np.testing.assert_array_equal(both.label_scores(population(), rows), expected(population()))
        assert both.traffic.bytes_down > before
    finally:
        server.kill()


def test_where_every_endpoint_is_dead_the_pool_says_so():
    addresses = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(EndpointError, match=r"no endpoint of the pool has answered for 1 s; http.*refused"):
        pool(*addresses, patience=1.0)


def test_where_every_endpoint_dies_the_pool_gives_up_after_its_patience():
    with serving(ToyBackend()) as address, FaultyProxy(address, ["dropped"] * 1000) as proxy:
        one = pool(proxy.url, patience=1.0)
        encoded = one.encode(ROWS, WORDS)
        with pytest.raises(EndpointError, match="no endpoint of the pool has answered for 1 s"):
            one.label_scores(population(), encoded)


def test_endpoints_that_disagree_are_named_once():
    with serving(ToyBackend(manual=100.0)) as a, serving(Shifted(0.0)) as b, serving(Shifted(0.5)) as c:
        for urls, disagree in (((a, b), False), ((a, c), True)):
            both = pool(*urls)
            encoded = both.encode(ROWS, WORDS)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                for _ in range(5):
                    both.label_scores(population(), encoded)
            assert len(told) == int(disagree)
            for warning in told:
                assert "differ by 0.5" in str(warning.message)
                assert all(url in str(warning.message) for url in urls)


class Shifted(ToyBackend):
    """Another arithmetic."""

    def __init__(self, shift):
        super().__init__()
        self.shift = np.float32(shift)

    def label_scores(self, prompts, encoded):
        scores = super().label_scores(prompts, encoded)
        scores[:, :, 1] += self.shift
        return scores


def test_endpoints_of_different_models_are_refused():
    with serving(ToyBackend()) as a, serving(ToyBackend(target=2.0)) as b:
        both = pool(a, b)
        encoded = both.encode(ROWS, WORDS)
        with pytest.raises(BackendError, match="must serve one model"):
            both.label_scores(population(1000), encoded)


def test_a_pool_needs_endpoints():
    with pytest.raises(ConfigError, match="a pool needs endpoints"):
        PoolBackend("toy", endpoints=[])


def test_a_part_that_two_have_done_counts_once():
    round = Round(4, 2)
    first, second = round.take(), round.take()
    round.put(first, "a")
    round.put(first, "another a")
    round.give_back(first, EndpointError("too late"))
    round.put(second, "b")
    assert round.take() is None
    assert round.results(1.0) == ["a", "b"]
