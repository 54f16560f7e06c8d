"""Toy backends with the faults that a cluster has. They are imported by the workers of the tests' clusters."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from bbt.testing import ToyBackend


def node():
    """The node of this process, as a file can be named after it."""
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "local"


class Toy(ToyBackend):
    """Takes `seconds` over each call, and leaves a note in the folder `notes` when it is made and when it scores."""

    def __init__(self, model="toy", notes=None, seconds=0.0, **options):
        super().__init__(model, **options)
        self.notes, self.seconds = notes and Path(notes), seconds
        self.note("made")

    def note(self, what):
        if self.notes:
            (self.notes / f"{what}-{node()}-{os.getpid()}").touch()

    def seen(self, what):
        return [*self.notes.glob(f"{what}-*")]

    def label_scores(self, prompts, encoded):
        self.note("scored")
        time.sleep(self.seconds)
        return super().label_scores(prompts, encoded)


class Mortal(Toy):
    """The first `deaths` processes that score a candidate below `at` are killed, as by a system out of memory."""

    def __init__(self, deaths=1, at=-2.0, **options):
        super().__init__(**options)
        self.deaths, self.at = deaths, at

    def label_scores(self, prompts, encoded):
        if prompts.size and prompts.min() < self.at and len(self.seen("died")) < self.deaths:
            self.note("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().label_scores(prompts, encoded)


class Hungry(Toy):
    """The first `meals` processes take `gigabytes` of memory and hold them until they are ended for it."""

    def __init__(self, meals=1, gigabytes=4, **options):
        super().__init__(**options)
        if len(self.seen("ate")) < meals:
            self.note("ate")
            held = [np.ones(2**27) for _ in range(gigabytes)]
            time.sleep(60)
            del held


class Uneven(Toy):
    """The first process to be made takes ten times as long over each call as the others."""

    def __init__(self, **options):
        super().__init__(**options)
        if len(self.seen("made")) == 1:
            self.seconds *= 10


class Remote(Toy):
    """Has an endpoint behind it, of which it tells the traffic."""

    def __init__(self, **options):
        super().__init__(**options)
        from bbt.backend import Traffic

        self.traffic = Traffic()

    def label_scores(self, prompts, encoded):
        self.traffic.bytes_up += 1000 * len(prompts)
        self.traffic.tokens_up += 7 * len(prompts)
        return super().label_scores(prompts, encoded)
