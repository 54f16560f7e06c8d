"""A transport is one endpoint over HTTP: what is worth trying again is tried again, and anything else is an error for
people.

Tried again, after a pause drawn from [0, 2^attempt * BACKOFF) seconds ("full jitter") or after the time that the
endpoint asks for: refused and broken connections, time-outs, answers cut short or garbled, and states that `passes`.
"""

import ipaddress
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import requests
from requests import PreparedRequest, Response
from requests.exceptions import ChunkedEncodingError, ConnectionError, ContentDecodingError, SSLError, Timeout
from requests.utils import get_environ_proxies, select_proxy

from bbt.backend import Traffic
from bbt.errors import ConfigError, EndpointError

PASSING = {408, 425, 429}
"""States below 500 that may pass: a time-out, too early, too many requests."""

LASTING = {501, 505, 506, 510, 511}
"""States from 500 on that stay: what was asked for is not implemented, or a network wants a login. All others are
overload, a restart or a fault inside the endpoint, those that gateways have made up (520 to 530, 598, 599) too."""

BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds: the first pause's upper end, and the largest it grows to."""

LONGEST_WAIT = 300.0
"""Seconds: an endpoint that asks for a longer wait than this has refused."""

CONNECT_TIMEOUT = 10.0

T = TypeVar("T")


class AnswerError(Exception):
    """An answer arrived, but is not what such an endpoint says: the request is tried again."""


class _PassingError(Exception):
    """A fault that may pass; `wait` is how many seconds the endpoint asks for."""

    def __init__(self, fault: str, wait: float = 0.0) -> None:
        super().__init__(fault)
        self.wait = wait


def passes(status: int) -> bool:
    """Whether an HTTP state is worth another attempt."""
    return status in PASSING or (500 <= status <= 599 and status not in LASTING)


class Transport:
    """Requests to the endpoint at `url`, for several threads at once.

    Addresses of this machine are reached past the proxies that the environment names (`http_proxy` and its kin); for
    others its `no_proxy` says which are.

    Args:
        url: the address of the endpoint, http or https.
        api_key_env: the environment variable that holds the key, which is sent as a bearer token. A key in a config
            would be saved with every run.
        timeout: the longest silence in seconds.
        retries: how often a request is tried again.
        verify: false, or a file of certificates to trust instead of the usual authorities.

    Raises:
        ConfigError: not an http address, or no such environment variable.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 8,
        verify: bool | str = True,
    ) -> None:
        address = _address(url)
        if isinstance(verify, str) and not os.path.exists(verify):
            raise ConfigError(f"verify: no file of certificates at {verify!r}.")
        self.url = url.rstrip("/")
        self.traffic = Traffic()
        # "*" is how requests is told to leave out whatever proxies the environment names
        self._proxies = {"no_proxy": "*"} if _is_loopback(address.hostname or "") else {}
        self._whom = self.url + ("" if self._proxies else _by_proxy(self.url, address))
        self._timeout, self._retries, self._verify = timeout, retries, verify
        self._session = requests.Session()
        self._session.auth = _Bearer(_key(api_key_env))
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        path: str,
        read: Callable[[Response], T],
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: Collection[int] = (),
        counted: bool = True,
    ) -> T:
        """Send a request and return what `read` makes of the answer.

        `read` gets answers below 400, and those whose state is one of `accept`; it raises AnswerError where one is
        damaged. `counted`: the exchange goes into `traffic`, as scoring does and preparations do not.

        Raises:
            EndpointError: the endpoint refuses, or did not answer soundly in all attempts.
        """
        send = partial(self._attempt, method, path, accept, json=json, data=data, headers=headers)
        for attempt in range(self._retries + 1):
            try:
                response = send()
                result = read(response)
            except (AnswerError, _PassingError) as error:
                fault, wait = str(error), getattr(error, "wait", 0.0)
            else:
                if counted:
                    self._count(response)
                return result
            if wait > LONGEST_WAIT:
                raise EndpointError(f"{self._whom}: {fault}. It asks to come back in {wait:.0f} seconds.")
            if attempt < self._retries:
                time.sleep(max(wait, _pause(attempt)))
        attempts = "1 attempt" if not self._retries else f"{self._retries + 1} attempts"
        raise EndpointError(f"{self._whom}: {fault}; given up after {attempts}. Is it running?")

    def count_tokens(self, up: int, down: int, written: bool = False) -> None:
        """Count tokens that the endpoint bills, or says that it has generated; whether a text was `written` for
        them."""
        with self._lock:
            self.traffic.tokens_up += up
            self.traffic.tokens_down += down
            self.traffic.written_up += up * written
            self.traffic.written_down += down * written

    def _attempt(self, method: str, path: str, accept: Collection[int], **content: Any) -> Response:
        """One attempt: an answer below 400, or the error that says whether another may help."""
        timeout = (min(CONNECT_TIMEOUT, self._timeout), self._timeout)
        try:
            # verify: here and not in the session, where REQUESTS_CA_BUNDLE would go before it
            response = self._session.request(
                method,
                self.url + path,
                timeout=timeout,
                verify=self._verify,
                proxies=self._proxies,
                allow_redirects=False,
                **content,
            )
        except (ConnectionError, Timeout, ChunkedEncodingError, ContentDecodingError) as error:
            inner = _innermost(error)
            if isinstance(error, SSLError) and not isinstance(inner, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                raise EndpointError(
                    f"{self._whom}: no trusted encrypted connection ({inner}). Is it https, and its certificate signed "
                    "by an authority known here? Otherwise set verify to the file of its own certificate."
                ) from error
            raise _PassingError(str(inner) or type(inner).__name__) from error
        except requests.RequestException as error:
            raise EndpointError(f"{self._whom}: the request cannot be sent ({error}).") from error
        if passes(response.status_code):
            raise _PassingError(_told(response), _retry_after(response))
        if response.status_code not in accept:
            self._refuse(response)
        return response

    def _refuse(self, response: Response) -> None:
        """Raise for a state that trying again would not change."""
        if response.status_code in (401, 403):
            raise EndpointError(
                f"{self._whom}: {_told(response)}. Set api_key_env to the name of the environment variable that holds "
                "a key of this endpoint."
            )
        if response.status_code >= 400:
            raise EndpointError(f"{self._whom}: {_told(response)}.", response.status_code)
        if response.is_redirect:
            raise EndpointError(f"{self._whom}: moved to {response.headers['location']}; give that address.")

    def _count(self, response: Response) -> None:
        up, down = exchange_size(response)
        with self._lock:
            self.traffic.bytes_up += up
            self.traffic.bytes_down += down


def read_json(response: Response) -> Any:
    """Read the answer's JSON.

    Raises:
        AnswerError: not JSON.
    """
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"an answer that is not JSON ({response.text[:60]!r})") from error


def exchange_size(response: Response) -> tuple[int, int]:
    """The bytes up and down of one exchange as HTTP/1.1 writes them: line, head and body (compressed, if it was)."""
    request = response.request
    line = f"{request.method} {request.path_url} HTTP/1.1"
    body = len(request.body or b"")
    host = (request.url or "").split("/")[2]
    up = len(line) + 2 + _head_size({"Host": host, **request.headers}) + body
    down = len(f"HTTP/1.1 {response.status_code} {response.reason}") + 2 + _head_size(response.headers)
    return up, down + response.raw.tell()


class _Bearer(requests.auth.AuthBase):
    """The key as an `auth` of requests, so that no .netrc file puts another in its place."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _address(url: str) -> SplitResult:
    """The parts of an http address.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # its brackets do not close, or its port is no number
        pass
    raise ConfigError(f"endpoint {url!r}: expected an address such as http://127.0.0.1:8000.")


def _is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no proxy elsewhere can reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _by_proxy(url: str, address: SplitResult) -> str:
    """What an error says of the proxy that stands before an address, without its password; empty if there is none."""
    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return ""
    return (
        f" (through the proxy {proxy.rpartition('@')[2]} that the environment names; "
        f"no_proxy={address.hostname} goes past it)"
    )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"api_key_env: the environment variable {variable} is not set.")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"api_key_env: the environment variable {variable} holds no key: not all of it is ASCII.")
    return key


def _told(response: Response) -> str:
    """The HTTP state and the endpoint's own words, which come as {"detail"}, {"error": {"message"}} or plain text."""
    text = response.text
    try:
        body = response.json()
        inner = body.get("error")
        text = str((inner if isinstance(inner, dict) else body).get("message") or body.get("detail") or inner or text)
    except (ValueError, AttributeError):
        pass
    return f"{response.status_code} {response.reason}: {' '.join(text.split())[:400] or 'no reason given'}"


def _retry_after(response: Response) -> float:
    """The seconds that the endpoint asks to wait: a number or a date (RFC 9110, section 10.2.3); 0 where it asks for
    none."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):  # some endpoints send fractions
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _pause(attempt: int) -> float:
    return random.random() * min(LONGEST_BACKOFF, BACKOFF * 2.0**attempt)


def _innermost(error: BaseException) -> BaseException:
    """The error at the root of one that libraries have wrapped several times."""
    seen = {id(error)}
    while (inner := error.__cause__ or error.__context__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    return error


def _head_size(headers: Mapping[str, str]) -> int:
    return sum(len(key) + len(value) + 4 for key, value in headers.items()) + 2
