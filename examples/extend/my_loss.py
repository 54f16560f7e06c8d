"""A loss: the Brier score, squared errors of the label words' probabilities."""

import numpy as np

from bbt.scoring.losses import log_softmax


def brier(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n, B, K) label scores and (B,) gold labels -> (n,); lower is better."""
    errors = np.exp(log_softmax(scores)) - np.eye(scores.shape[-1])[labels]
    return np.square(errors).sum(axis=-1).mean(axis=-1)
