"""What networks and servers do, done to a real server by a proxy or by killing it: nothing changes but the time."""

import subprocess
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from itertools import count
from random import Random

import numpy as np
import pytest
from serving import FaultyProxy, ServerProcess, free_port, serving
from tiny_models import HIDDEN

import backends.transport
import bbt
from backends.http import HttpBackend
from backends.serve.keys import Keys, Quota
from bbt.api import resume, run
from bbt.config import make_config
from bbt.errors import ConfigError, EndpointError
from bbt.runs.observer import Observer
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import cross_entropy
from bbt.scoring.objective import Objective
from bbt.scoring.scorer import Scorer
from bbt.tasks import Example, Task, Template

TASK = Task("films", Template("{prompt} . {text} . It was {mask}"), ("bad", "great"), ("bad", "great"))
EXAMPLES = [Example("a film", 0), Example("great", 1), Example("it was slow", 0)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(backends.transport, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return str(tiny_folder("bert"))


@pytest.fixture(scope="module")
def url(model):
    from backends.local import LocalBackend

    with serving(LocalBackend(model, precision="fp32", device="cpu")) as address:
        yield address


def population(n=4):
    return np.random.default_rng(0).normal(0, 0.2, (n, 5, HIDDEN)).astype(np.float32)


def scored(model, url, **options):
    """Losses of a population, and the ledger."""
    ledger = Ledger()
    backend = HttpBackend(model, url=url, **options)
    losses = Objective(Scorer(backend, TASK, EXAMPLES, ledger), cross_entropy, ledger).losses(population())
    return losses, ledger


@pytest.mark.parametrize(
    "fault",
    [
        "dropped",
        "lost",
        "reset",
        "truncated",
        "shorter",
        "garbled",
        "garbled_up",
        "wrong_shape",
        "broken",
        "unavailable",
        "busy",
        "slow",
    ],
)
def test_a_fault_that_passes_costs_time_and_nothing_else(model, url, fault):
    with FaultyProxy(url) as proxy:
        expected, sound = scored(model, proxy.url)
    with FaultyProxy(url, [fault, fault]) as proxy:
        losses, ledger = scored(model, proxy.url, timeout=1.0)
    assert proxy.seen == 3
    np.testing.assert_array_equal(losses, expected)
    counts = ("train_queries", "examples", "bytes_up", "bytes_down")
    assert [getattr(ledger, name) for name in counts] == [getattr(sound, name) for name in counts]


def test_retry_after_is_waited_for(model, url):
    with FaultyProxy(url, ["busy"]) as proxy:
        _, ledger = scored(model, proxy.url)
    assert ledger.backend_seconds > 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("2.5", 2.5),
        ("\u00b2", 0),
        ("-1", 0),
        ("inf", 0),
        ("in an hour", 3600),
        ("an hour ago", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header, seconds):
    from requests import Response

    now, hour = datetime.now(timezone.utc), timedelta(hours=1)
    dates = {"in an hour": format_datetime(now + hour), "an hour ago": format_datetime(now - hour)}
    response = Response()
    response.headers["Retry-After"] = dates.get(header, header)
    assert backends.transport._retry_after(response) == pytest.approx(seconds, abs=60)


def test_nan_scores_make_a_broken_candidate_and_no_error(model, url):
    with FaultyProxy(url, ["nan"]) as proxy:
        losses, ledger = scored(model, proxy.url)
    assert np.isposinf(losses).all()
    assert ledger.train_queries == len(losses)


@pytest.mark.parametrize("fault", ["dropped", "truncated", "garbled", "broken"])
def test_a_fault_that_stays_is_an_error_that_counts_the_attempts(model, url, fault):
    with (
        FaultyProxy(url, [fault] * 9) as proxy,
        pytest.raises(EndpointError, match=rf"{proxy.url}: .+; given up after 3 attempts\. Is it running\?"),
    ):
        scored(model, proxy.url, retries=2)
    assert proxy.seen == 3


def test_a_refused_connection_is_an_error_that_names_the_address(model):
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EndpointError, match=rf"{address}: .*refused; given up after 2 attempts"):
        HttpBackend(model, url=address, retries=1)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://somewhere", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="expected an address such as"):
        HttpBackend(url=address)


def test_a_wrong_or_missing_key_is_an_error_that_says_what_to_set(model, tiny_backend, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "the wrong key of them all")
    with serving(tiny_backend("bert"), Keys([("us", Quota(key="a key of length 24 ......"))])) as address:
        for options in ({}, {"api_key_env": "OUR_KEY"}):
            with pytest.raises(EndpointError, match=r"401 .*Set api_key_env"):
                HttpBackend(model, url=address, **options)
        monkeypatch.setenv("OUR_KEY", "a key of length 24 ......")
        assert HttpBackend(model, url=address, api_key_env="OUR_KEY").info.hidden_size == HIDDEN
    with pytest.raises(ConfigError, match="environment variable NOBODYS is not set"):
        HttpBackend(model, url=address, api_key_env="NOBODYS")


def test_a_key_is_not_written_into_the_run(model, tiny_backend, monkeypatch, tmp_path):
    monkeypatch.setenv("OUR_KEY", "a key of length 24 ......")
    with serving(tiny_backend("bert"), Keys([("us", Quota(key="a key of length 24 ......"))])) as address:
        folder = run(make_config(settings(model, address, api_key_env="OUR_KEY")), tmp_path).folder
    for path in folder.iterdir():
        assert b"a key of length 24" not in path.read_bytes()


def test_a_certificate_nobody_signed_is_an_error_and_can_be_trusted_by_name(model, tiny_backend, tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
    subprocess.run(make, check=True, capture_output=True)
    with serving(tiny_backend("bert"), tls=(certificate, key)) as address:
        address = address.replace("http://", "https://")
        with pytest.raises(
            EndpointError, match=r"no trusted encrypted connection .*certificate.* set verify to the file"
        ):
            HttpBackend(model, url=address)
        losses, _ = scored(model, address, verify=str(certificate))
    assert np.isfinite(losses).all()


def settings(model, url, **options):
    return {
        "name": "run",
        "task": {"name": "sst2"},
        "model": {"backend": "http", "name": str(model), "options": {"url": url, **options}},
        "prompt": {"n_prompt_tokens": 3, "intrinsic_dim": 20, "n_screened": 4},
        "optimizer": {"population_size": 5},
        "budget": {"queries": 104, "dev_every": 25},
        "selection": {"n_best": 2, "baselines": False},
        "evaluation": {"rows": 20},
    }


def facts(outcome):
    """All of a run that must not depend on the network."""
    timeless = ("train_queries", "dev_queries", "examples", "bytes_up", "bytes_down")
    result = outcome.result
    counts = {name: result["cost"][name] for name in timeless}
    return result["test"], result["selected"], counts, outcome.classifier.prompt.embeddings.tobytes()


def test_a_run_through_a_network_that_loses_a_tenth_is_the_same_bit_for_bit(model, url):
    chance = Random(0)
    kinds = ("dropped", "lost", "reset", "truncated", "garbled", "broken", "unavailable")
    faults = (chance.choice(kinds) if number % 10 == 4 else None for number in count())
    with FaultyProxy(url) as sound:
        expected = facts(bbt.tune(settings(model, sound.url)))
    with FaultyProxy(url, faults) as proxy:
        outcome = bbt.tune(settings(model, proxy.url))
    assert proxy.seen >= 1.1 * sound.seen
    assert facts(outcome) == expected


class Killer(Observer):
    """Kills the server in mid-run and starts another in its place."""

    def __init__(self, server, after):
        self.server, self.after = server, after

    def progressed(self, progress):
        if self.after and progress.done >= self.after:
            self.after = None
            self.server.kill()
            self.server.start(wait=False)


def test_a_server_killed_and_restarted_in_mid_run_changes_nothing(model, url, monkeypatch):
    monkeypatch.setattr(backends.transport, "BACKOFF", 0.5)
    server = ServerProcess.of(model, "--option", "precision=fp32").start()
    try:
        outcome = bbt.tune(settings(model, server.url), observer=Killer(server, after=40))
    finally:
        server.kill()
    assert facts(outcome) == facts(bbt.tune(settings(model, url)))


def test_a_run_whose_server_is_gone_stops_with_one_line_and_is_resumed(model, url, tmp_path):
    faults = iter([None] * 9 + ["dropped"] * 5)
    with FaultyProxy(url, faults) as proxy:
        config = make_config(settings(model, proxy.url, retries=4))
        with pytest.raises(EndpointError, match="given up after 5 attempts"):
            run(config, tmp_path)
        done = (tmp_path / "run" / "events.jsonl").read_text().count('"generation"')
        assert done > 3
        outcome = resume(tmp_path / "run")
        assert facts(outcome) == facts(bbt.tune(settings(model, proxy.url)))
