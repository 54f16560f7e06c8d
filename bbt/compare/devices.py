"""The runs of a comparison are shared out over this machine's devices: each run sees one, and one that is free."""

import os
import queue
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bbt.errors import ConfigError


class Devices:
    """Devices by name (`cuda:0`, `cuda:1`, `cpu`), of which each is one run's at a time; a name given twice serves two
    runs at once. None: runs see all that there is.

    Raises:
        ConfigError: a name that is no device's.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        wrong = next((name for name in names if not re.fullmatch(r"cpu|cuda:\d+", name)), None)
        if wrong is not None:
            raise ConfigError(f"--devices: {wrong!r} is no device; give names such as cuda:0,cuda:1 or cpu.")
        self._free: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._any = bool(names)
        for name in names:
            self._free.put(name)

    @contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """A context with a device of its own, as the environment in which a process sees no other GPU; it waits until
        one is free."""
        if not self._any:
            yield {}
            return
        name = self._free.get()
        try:
            yield {"CUDA_VISIBLE_DEVICES": visible(name)}
        finally:
            self._free.put(name)


def visible(device: str) -> str:
    """What `CUDA_VISIBLE_DEVICES` says for one device alone; where this process sees only some, `cuda:0` is the first
    of these."""
    if device == "cpu":
        return ""
    number, seen = int(device.partition(":")[2]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        return str(number)
    names = [name.strip() for name in seen.split(",") if name.strip()]
    if number >= len(names):
        raise ConfigError(f"--devices: there is no {device}: CUDA_VISIBLE_DEVICES={seen!r} shows {len(names)} of them.")
    return names[number]
