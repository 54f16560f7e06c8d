"""A server process that starts in a second: `python serving_toy.py PORT SECONDS` serves `ToyBackend`, which takes so
long for every scoring."""

import sys
import time

from backends.serve.keys import Keys
from backends.serve.limits import Limits
from backends.serve.run import serve
from bbt.testing import ToyBackend


class Slow(ToyBackend):
    def label_scores(self, prompts, encoded):
        time.sleep(float(sys.argv[2]))
        return super().label_scores(prompts, encoded)


if __name__ == "__main__":
    serve(Slow(), "127.0.0.1", int(sys.argv[1]), Keys(), Limits())
