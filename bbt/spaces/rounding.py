"""Soft prompts rounded to the nearest tokens of a vocabulary: (n, T, H) -> (n, T)."""

import math
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bbt.draws import stable_uniform
from bbt.types import Prompts, TokenIds

Similarity = Literal["cosine", "l2"]
Rule = Literal["nearest", "distinct", "stochastic"]


def similarities(prompts: Prompts, words: NDArray[np.float32], metric: Similarity) -> NDArray[np.float32]:
    """(n, T, V) of every prompt token to the word embeddings (V, H): their cosine, or minus half the squared
    distance (less |p|^2 / 2, which is the same for all words)."""
    if metric == "cosine":
        return np.asarray(_normalised(prompts) @ _normalised(words).T)
    return np.asarray(prompts @ words.T - 0.5 * np.square(words).sum(axis=1))


def rounded(prompts: Prompts, words: NDArray[np.float32], metric: Similarity, rule: Rule, seed: int = 0) -> TokenIds:
    """(n, T, H) -> (n, T) indices of words (V, H).

    nearest: every token for itself. distinct: from the most certain token on, each takes the nearest word that is
    left, so that none is repeated. stochastic: drawn in proportion to exp(similarity / its standard deviation over
    the words), by the seed and the prompt's own bits, so that the same prompt always becomes the same words.

    The projection onto the nearest word embedding is that of PEZ (Wen et al. 2023, arXiv 2302.03668).
    """
    near = similarities(prompts, words, metric)
    if rule == "nearest":
        return np.asarray(near.argmax(axis=-1))
    if rule == "distinct":
        return np.array([_distinct(one) for one in near], dtype=np.int64).reshape(near.shape[:2])
    noise = np.array([_gumbel(seed, prompt, near.shape[1:]) for prompt in prompts]).reshape(near.shape)
    return np.asarray((near / near.std(axis=-1, keepdims=True) + noise).argmax(axis=-1))


def _distinct(near: NDArray[np.float32]) -> NDArray[np.int64]:
    """(T, V) -> (T,) without repetition, as long as there are words enough."""
    near, chosen = near.copy(), np.zeros(len(near), dtype=np.int64)
    for token in near.max(axis=1).argsort()[::-1]:
        chosen[token] = near[token].argmax()
        near[:, chosen[token]] = -np.inf
    return chosen


def _gumbel(seed: int, prompt: Prompts, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise under which the argmax is a draw from the softmax."""
    bits = zlib.crc32(np.ascontiguousarray(prompt).tobytes())
    uniform = stable_uniform((seed << 32) + bits, math.prod(shape)) + 2.0**-54
    return np.asarray(-np.log(-np.log(uniform)).reshape(shape))


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))
