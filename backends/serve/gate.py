"""The gate asks, before a request's body is read, who sends it and whether it is small enough; after the answer it
writes one line of log and the metrics."""

import re
import time
from collections.abc import Sequence

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.serve.keys import Keys, QuotaError
from backends.serve.metrics import Metrics

OPEN = ("/healthz", "/docs", "/openapi.json")
"""Paths that need no key."""

log = structlog.get_logger("bbt.serve")


class RefusalError(Exception):
    """A request that goes no further; it may come again after `wait` seconds."""

    def __init__(self, status: int, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.wait = status, wait

    def response(self) -> JSONResponse:
        """The answer to the request, of the form that every fault has."""
        return refusal(self.status, "Refused", str(self), self.wait)


def refusal(status: int, error: str, detail: str, wait: float | None = None, words: Sequence[str] = ()) -> JSONResponse:
    """The answer to a request that is refused, with the label words that were, if any; Retry-After is rounded up."""
    headers = {} if wait is None else {"Retry-After": str(int(wait) + 1)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": error, "detail": detail, **({"words": list(words)} if words else {})}
    return JSONResponse(body, status, headers)


class Gate:
    """The ASGI middleware around the whole application; it sets `request.state.account`."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, body_bytes: int) -> None:
        self._app, self._keys, self._metrics, self._body_bytes = app, keys, metrics, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on and take note of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                length = self._admit(scope)
            except RefusalError as error:
                await error.response()(scope, receive, noted)
            else:
                await self._app(scope, self._counted(receive, length), noted)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _admit(self, scope: Scope) -> int:
        """Admit a request, and return the length of its body.

        Raises:
            RefusalError: no key, no length, too long, or the key's hour is used up.
        """
        headers = Headers(scope=scope)
        length = _length(headers, scope["method"])
        if length > self._body_bytes:
            raise RefusalError(413, f"a body of {length} bytes: at most {self._body_bytes}.")
        if scope["path"] in OPEN:
            return length
        scheme, _, key = headers.get("authorization", "").partition(" ")
        account = self._keys.account(key.strip() if scheme.lower() == "bearer" else "")
        if account is None:
            raise RefusalError(401, "no key, or none of this server's: send Authorization: Bearer KEY.")
        try:
            account.charge(requests=1, bytes=length)
        except QuotaError as error:
            raise RefusalError(429, str(error), error.wait) from error
        scope.setdefault("state", {})["account"] = account
        return length

    def _counted(self, receive: Receive, length: int) -> Receive:
        """The body as it comes, cut off at the length that was admitted."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            some = len(message.get("body", b""))
            self._metrics.bytes_up.inc(some)
            received += some
            if received > length:
                raise HTTPException(413, f"a body of more than the {length} bytes that Content-Length names.")
            return message

        return counted

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        account = scope.get("state", {}).get("account")
        log.info(
            "request",
            method=scope["method"],
            route=route,
            status=status,
            account=account.name if account else None,
            seconds=round(seconds, 6),
        )


def _length(headers: Headers, method: str) -> int:
    lengths = headers.getlist("content-length")
    if "transfer-encoding" in headers:
        if lengths:  # RFC 9112, section 6.3: both together may be meant to be read in two ways
            raise RefusalError(400, "a body with Content-Length and Transfer-Encoding: send the first alone.")
        raise RefusalError(411, f"a {method} body needs Content-Length.")
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
        raise RefusalError(400, "Content-Length is no number of bytes.")
    return int(lengths[0])
