"""`bbt serve` for tests: in a thread of this process, or as the command in a process of its own; and a proxy that
does to its answers what networks do."""

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import requests
import structlog
import uvicorn

from backends.serve.app import create_app
from backends.serve.keys import Keys
from backends.serve.limits import Limits
from backends.serve.run import server_config
from backends.wire import pack, unpack

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def raw_request(address: str, head: bytes, *body: bytes, patience: float = 30.0) -> int | None:
    """The state that a server answers to exactly these bytes, sent one after the other; None: none within `patience`
    seconds, after which the connection is closed."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        try:
            for part in (head, *body):
                connection.sendall(part)
        except OSError:  # it has heard enough
            pass
        try:
            return int(connection.recv(100).split()[1])
        except (TimeoutError, ConnectionError, IndexError):
            return None


def chunked(n_bytes: int) -> list[bytes]:
    """A body of that size, 64 KiB a chunk."""
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    return [chunk] * (n_bytes // 2**16) + [b"0\r\n\r\n"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(backend, keys=None, tls=(None, None), trained=None, **limits) -> Iterator[str]:
    """A server of this backend on a thread, with files of a certificate and its key if it is given `tls`; gives its
    address."""
    port = free_port()
    app = create_app(backend, keys or Keys(), Limits(**limits), trained)
    certificate, key = tls
    server = uvicorn.Server(server_config(app, "127.0.0.1", port, ssl_certfile=certificate, ssl_keyfile=key))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class ServerProcess:
    """A server in a process of its own; `kill` and `start` it as often as you like, the port stays."""

    def __init__(self, *command: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, *(str(part).replace("PORT", str(self.port)) for part in command)]
        self.process = None

    @classmethod
    def of(cls, model, *options: str) -> "ServerProcess":
        """The command `bbt serve`."""
        return cls("-m", "bbt.cli", "serve", model, "--port", "PORT", *options)

    @classmethod
    def toy(cls, seconds: float = 0.0) -> "ServerProcess":
        """Started in a second, and so long over every scoring."""
        return cls(Path(__file__).with_name("serving_toy.py"), "PORT", seconds)

    def start(self, wait=True):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self._command, env=environment, **quiet)
        while wait and not self.healthy():
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.05)
        return self

    def healthy(self) -> bool:
        try:
            return requests.get(self.url + "/healthz", timeout=5).ok
        except requests.ConnectionError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()


class FaultyProxy:
    """Between a client and `upstream`; `faults` are used up by scoring requests, one each: a name below, or None.

    Whatever else is asked passes. `seen` counts scoring requests, faulty ones too.
    """

    def __init__(self, upstream: str, faults=()) -> None:
        self.faults, self.seen = iter(faults), 0
        self._upstream = upstream.removeprefix("http://")
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def forward(self, method, path, headers, body):
        connection = HTTPConnection(self._upstream, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def do_GET(self):
        self._pass_on()

    def do_POST(self):
        self._pass_on()

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = None
        if self.path.startswith("/v1/scores"):
            self.proxy.seen += 1
            fault = next(self.proxy.faults, None)
        if fault is not None:
            body = getattr(self, f"_before_{fault}", lambda body: body)(body)
        if body is None:
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        try:
            status, head, content = self.proxy.forward(self.command, self.path, headers, body)
        except (OSError, HTTPException):
            self._reset()
            return
        change = getattr(self, f"_after_{fault}", None)
        if change is None:
            self._answer(status, content, head)
        else:
            change(status, content)

    def _answer(self, status, content, head=(), length=None):
        self.send_response(status)
        for key, value in dict(head).items():
            if key.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _reset(self):
        """RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _before_dropped(self, body):
        self._reset()

    def _before_slow(self, body):
        time.sleep(1.5)
        return body

    def _before_garbled_up(self, body):
        return _flipped(body)

    def _before_busy(self, body):
        self._answer(429, b'{"error": "BusyError", "detail": "come back"}', {"Retry-After": "1"})

    def _before_broken(self, body):
        self._answer(500, b"<html>oops</html>")

    def _before_unavailable(self, body):
        self._answer(503, b"")

    def _after_lost(self, status, content):
        """The answer is computed, and never arrives."""
        self._reset()

    def _after_reset(self, status, content):
        self._answer(status, content[: len(content) // 2], length=len(content))
        self._reset()

    def _after_truncated(self, status, content):
        self._answer(status, content[: len(content) // 2], length=len(content))
        self.close_connection = True

    def _after_shorter(self, status, content):
        """Truncated by somebody who has made the length right."""
        self._answer(status, content[:-3])

    def _after_garbled(self, status, content):
        self._answer(status, _flipped(content))

    def _after_wrong_shape(self, status, content):
        numbers = unpack(content, 1)
        self._answer(status, pack(np.concatenate([numbers, numbers])))

    def _after_nan(self, status, content):
        self._answer(status, pack(np.full_like(unpack(content, 1), np.nan)))

    def log_message(self, *_):
        pass


def _flipped(body):
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :]
