"""What the run folders in tests/data/v0.1 were made with, as they name it."""

from dataclasses import replace

import bbt.testing


class ToyBackend(bbt.testing.ToyBackend):
    """The toy backend of version 0.1, whose info told another standard deviation of the word embeddings."""

    def __init__(self, model):
        super().__init__(model)
        self.info = replace(self.info, embedding_std=0.1)
