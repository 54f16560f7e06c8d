"""The environment's proxies: passed by for this machine's own addresses, named in errors for others."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import free_port, serving

from backends.http import HttpBackend
from backends.transport import Transport, read_json
from bbt.errors import ConfigError, EndpointError
from bbt.testing import ToyBackend


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that answers everything itself; the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{server.server_port}")
        server.asked = asked
        yield server
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_model_on_this_machine_is_reached_past_the_proxy(proxy, host):
    with serving(ToyBackend()) as url:
        assert HttpBackend("toy", url=url.replace("127.0.0.1", host), retries=0).info.name == "toy"
    assert not proxy.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost", "models.localhost", "0.0.0.0"])
def test_every_address_of_this_machine_is_passed_by(proxy, host):
    with pytest.raises(EndpointError, match="given up after 1 attempt") as fault:
        Transport(f"http://{host}:{free_port()}", retries=0).call("GET", "/", read_json)
    assert "proxy" not in str(fault.value)
    assert not proxy.asked


def test_other_machines_are_asked_through_the_proxy_which_errors_name(proxy):
    with pytest.raises(EndpointError, match=r"through the proxy 127\.0\.0\.1:\d+ .*no_proxy=models\.example") as fault:
        Transport("http://models.example").call("GET", "/v1/models", read_json)
    assert proxy.asked == ["http://models.example/v1/models"]
    assert "secret" not in str(fault.value)


def test_a_proxy_that_is_not_there_is_named(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(EndpointError, match=r"through the proxy .*refused; given up after 1 attempt"):
        Transport("http://models.example", retries=0).call("GET", "/v1/models", read_json)


def test_no_proxy_names_addresses_that_are_reached_past_it(monkeypatch, proxy):
    monkeypatch.setenv("no_proxy", "models.invalid")
    with pytest.raises(EndpointError, match="given up after 1 attempt") as fault:
        Transport("http://models.invalid", retries=0).call("GET", "/v1/models", read_json)
    assert "proxy" not in str(fault.value)
    assert not proxy.asked


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://host:port", "http://host:99999", "https:///v1"])
def test_an_address_without_a_host_or_a_port_is_refused(address):
    with pytest.raises(ConfigError, match="expected an address such as"):
        Transport(address)


@pytest.mark.parametrize("key", ["\u043a\u043b\u044e\u0447", "two\nlines"])
def test_a_key_that_no_head_can_hold_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OUR_KEY", key)
    with pytest.raises(ConfigError, match="OUR_KEY holds no key") as fault:
        Transport("http://127.0.0.1:1", api_key_env="OUR_KEY")
    assert key not in str(fault.value)
