"""Aliases of array types, and the letters that every docstring uses.

n candidates, T prompt tokens, H hidden size, L layers, d intrinsic dimension, D = T * H,
B examples, K label words, M label words and further words.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Latents: TypeAlias = NDArray[np.float64]
"""(n, d) search points z, one row a candidate."""

Prompts: TypeAlias = NDArray[np.float32]
"""(n, T, H) soft prompts in the space of the word embeddings."""

DeepPrompts: TypeAlias = NDArray[np.float32]
"""(n, L, T, H) a prompt for every layer: the word embeddings' and what is added before layers 1 to L - 1."""

TokenIds: TypeAlias = NDArray[np.int64]
"""(n, T) hard prompts: tokens of the model's vocabulary."""

AnyPrompts: TypeAlias = NDArray[Any]
"""Soft prompts (n, T, H), deep ones (n, L, T, H) or hard ones (n, T)."""

Scores: TypeAlias = NDArray[np.floating[Any]]
"""(n, B, K) label scores, defined up to one constant per (candidate, example)."""

RowScores: TypeAlias = NDArray[np.floating[Any]]
"""(B, K) label scores of one classifier."""

Losses: TypeAlias = NDArray[np.float64]
"""(n,) one loss a candidate; lower is better."""

Labels: TypeAlias = NDArray[np.int64]
"""(B,) gold label indices in [0, K)."""

Event: TypeAlias = dict[str, Any]
"""One line of a run's event log."""
