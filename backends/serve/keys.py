"""API keys say who asks, and what each holder may use in an hour."""

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml
from pydantic import Field

from bbt.config import validated
from bbt.errors import ConfigError
from bbt.settings import Strict

HOUR = 3600.0


class Quota(Strict):
    """A key, and what its holder may use in an hour (none: as much as it likes)."""

    key: str = Field(min_length=16)
    """The key itself, 16 characters or more."""
    requests: int | None = Field(None, ge=0)
    """Requests."""
    rows: int | None = Field(None, ge=0)
    """Rows times candidates that are scored."""
    bytes: int | None = Field(None, ge=0)
    """Bytes of the requests' bodies and of the label scores that answer them."""


class QuotaError(Exception):
    """A key has used up its hour, of which `wait` seconds are left."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class Account:
    """What the holder of one key has used in the current hour. Without a quota anything goes."""

    def __init__(self, name: str, quota: Quota | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self._quota, self._clock = name, quota, clock
        self._begin, self._used = clock(), {"requests": 0, "rows": 0, "bytes": 0}

    def charge(self, **amounts: int) -> None:
        """Count `requests`, `rows` or `bytes`.

        Raises:
            QuotaError: more than the hour's quota; nothing is counted then.
        """
        if self._clock() - self._begin >= HOUR:
            self._begin, self._used = self._clock(), dict.fromkeys(self._used, 0)
        for what, amount in amounts.items():
            quota = getattr(self._quota, what, None)
            if quota is not None and self._used[what] + amount > quota:
                message = f"{self._used[what]} of this key's {quota} {what} an hour are used, {amount} more asked for"
                raise QuotaError(message, HOUR - (self._clock() - self._begin))
        for what, amount in amounts.items():
            self._used[what] += amount


class Keys:
    """The accounts by their keys; keys are kept as digests only. Without any key everybody is one account."""

    def __init__(self, accounts: Iterable[tuple[str, Quota]] = ()) -> None:
        self._accounts = {_digest(quota.key): Account(name, quota) for name, quota in accounts}
        self._anybody = None if self._accounts else Account("anybody")

    def __len__(self) -> int:
        return len(self._accounts)

    def account(self, key: str) -> Account | None:
        """The account of who holds this key. It is looked up by digest, so that the time it takes tells nothing of the
        keys."""
        return self._anybody or self._accounts.get(_digest(key))

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Read keys from a YAML file: a name, its `key` (16 characters or more), and its quotas.

        Raises:
            ConfigError: no such file, or not of this form.
        """
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            keys = [(str(name), validated(Quota, quota, str(name))) for name, quota in tree.items()]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
            raise ConfigError(
                f"keys file {path}: expected YAML such as `alice: {{key: ..., rows: 100000}}`."
            ) from error
        if len({quota.key for _, quota in keys}) < max(1, len(keys)):
            raise ConfigError(f"keys file {path}: expected at least one key, each another one.")
        return cls(keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
