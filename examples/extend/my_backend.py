"""A backend: a local model whose scores are divided by a temperature, an option of its own.

One that begins from nothing is `bbt/testing/toy.py`: six members, no model at all.
"""

import numpy as np

from backends.local import LocalBackend


class Cooled(LocalBackend):
    def __init__(self, model: str, temperature: float = 2.0, device: str = "auto", precision: str = "fp32") -> None:
        super().__init__(model, device=device, precision=precision)
        self._temperature = np.float32(temperature)

    def label_scores(self, prompts: np.ndarray, encoded: object) -> np.ndarray:
        return super().label_scores(prompts, encoded) / self._temperature
