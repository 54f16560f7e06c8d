"""A Ray cluster: what a piece of work asks of it, and how it is joined. Ray is imported when it is needed."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from bbt.errors import ConfigError
from bbt.settings import Strict

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
"""The environment variables that say how many threads a process computes with."""


def _bytes(value: object) -> object:
    """The number of bytes that a text such as 8GiB or 500 MB names."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", value, re.IGNORECASE)
    unit = found[2].upper() if found else "?"
    unit = unit + "B" if unit and not unit.endswith("B") else "" if unit == "B" else unit
    if not found or unit not in UNITS:
        raise ValueError("need a size such as 8GiB or 500MB")
    return int(float(found[1]) * UNITS[unit])


class Resources(Strict):
    """What one run, or one actor, asks of the node that it is put on. Ray counts what is asked for, so that a node is
    not given more than it has; it does not hold the work to it."""

    cpu: float = Field(1.0, ge=0)
    """The CPUs; the work computes with as many threads (one at least)."""
    gpu: float = Field(0.0, ge=0)
    """The GPUs; 0.5 lets two share one."""
    memory: Annotated[int, BeforeValidator(_bytes)] = Field(0, ge=0)
    """The bytes of memory, as a number or as a text such as 8GiB (0: nothing is asked for)."""

    @field_validator("cpu", "gpu")
    @classmethod
    def _whole_above_one(cls, amount: float) -> float:
        """Refuse 1.5, which Ray does not take."""
        if amount > 1 and amount != int(amount):
            raise ValueError("need a whole number above 1")
        return amount

    @property
    def n_threads(self) -> int:
        """The threads that the work computes with."""
        return max(1, int(self.cpu))

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that hold the work to its threads."""
        return dict.fromkeys(THREADS, str(self.n_threads))

    def over(self, base: "Resources") -> "Resources":
        """These resources, and the base's where nothing was said here."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    def asked(self) -> dict[str, float]:
        """What is asked for, by Ray's names of resources."""
        amounts = {"CPU": self.cpu, "GPU": self.gpu, "memory": float(self.memory)}
        return {name: amount for name, amount in amounts.items() if amount}

    def options(self) -> dict[str, Any]:
        """The same as options of a Ray task or actor."""
        wanted = {"num_cpus": self.cpu, "num_gpus": self.gpu, "runtime_env": {"env_vars": self.environment}}
        return {**wanted, "memory": self.memory} if self.memory else wanted

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount:g}" for name, amount in self.asked().items()) or "nothing"


def imported() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed; names the extra.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError("a cluster needs the package ray: pip install 'bbt-prompt[ray]'.") from error
    return ray


def join(address: str = "auto") -> Any:
    """Join a cluster, unless this process has joined one, and return Ray. `auto` is the cluster that RAY_ADDRESS names,
    or one that runs on this machine, or else a new one of this machine alone, which ends with the process.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """
    ray = imported()
    if not ray.is_initialized():
        where = os.environ.get("RAY_ADDRESS") if address == "auto" else address
        try:
            ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"no Ray cluster answers at {where or address}: {reason}") from error
    return ray


@contextmanager
def joined(address: str = "auto") -> Iterator[Any]:
    """A context in which a cluster is joined; when it ends, the cluster is left again, and nothing of this process's
    goes on there."""
    was_in = imported().is_initialized()
    try:
        yield join(address)
    finally:
        if not was_in:
            imported().shutdown()


def most_of_a_node(ray: Any) -> dict[str, float]:
    """The most that a node of the cluster has in all, by Ray's names of resources."""
    most: dict[str, float] = {}
    for node in ray.nodes():
        for name, amount in node["Resources"].items() if node["Alive"] else ():
            most[name] = max(most.get(name, 0.0), amount)
    return most
