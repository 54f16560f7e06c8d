"""The prompt space p = p0 + A z takes one matrix product for a whole population."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bbt.backend import Encoded
from bbt.draws import on_grid, stable_normal, stable_uniform
from bbt.errors import ConfigError
from bbt.types import AnyPrompts, Latents, Prompts, RowScores, Scores

Projection = Literal["uniform", "normal", "orthonormal"]

MAX_NUMBERS = 2**31
"""Largest A (D x d): 8.6 GB in float32, three times that while it is drawn."""


def normal_scale(embedding_std: float, intrinsic_dim: int, sigma0: float, alpha: float = 1.0) -> float:
    """Standard deviation of A's entries in BBT's released code: alpha * std / (sqrt(d) * sigma0).

    With it, p0 + A z at z ~ N(0, sigma0^2) moves each coordinate of the prompt by alpha standard deviations of
    the word embeddings. Rounded to float32 so that machines agree on it.
    """
    return float(np.float32(alpha * embedding_std / (math.sqrt(intrinsic_dim) * sigma0)))


def random_projection(
    seed: int, n_rows: int, intrinsic_dim: int, projection: Projection, scale: float
) -> NDArray[np.float32]:
    """Draw A (D, d), D = `n_rows`; the same seed always draws the same A.

    uniform: U(-scale, scale); the ICML paper takes scale = 1 / sqrt(d) (BBT section 3.2).
    normal: N(0, scale^2), with `normal_scale` as in the released code.
    orthonormal: orthogonal columns of the length that a normal column has on average, scale * sqrt(D).

    Raises:
        ConfigError: orthonormal columns were asked for in more dimensions than the prompt has, or A has more than
            `MAX_NUMBERS`.
    """
    size = n_rows * intrinsic_dim
    if size > MAX_NUMBERS:
        raise ConfigError(
            f"A would hold {n_rows} x {intrinsic_dim} numbers ({4e-9 * size:.1f} GB; T * H rows, d columns), "
            f"more than {4e-9 * MAX_NUMBERS:.1f} GB. Lower prompt.intrinsic_dim or prompt.n_prompt_tokens."
        )
    if projection == "uniform":
        matrix = (2.0 * stable_uniform(seed, size) - 1.0) * scale
    else:
        matrix = stable_normal(seed, size)
        matrix *= scale
    matrix = matrix.reshape(n_rows, intrinsic_dim)
    if projection == "orthonormal":
        if intrinsic_dim > n_rows:
            raise ConfigError(
                f"intrinsic_dim {intrinsic_dim} is larger than the prompt ({n_rows} numbers): no orthonormal "
                "projection exists. Lower intrinsic_dim or take projection: normal."
            )
        matrix = on_grid(np.linalg.qr(matrix)[0]) * (scale * math.sqrt(n_rows))
    return matrix.astype(np.float32)


class Space(Protocol):
    """The protocol of what a search runs over: it has a prompt for every z, soft (n, T, H), deep (n, L, T, H) or hard
    (n, T)."""

    @property
    def intrinsic_dim(self) -> int:
        """The intrinsic dimension d."""

    @property
    def n_prompt_tokens(self) -> int:
        """The number of prompt tokens T."""

    @property
    def p0(self) -> AnyPrompts:
        """The prompt at z = 0, as a population of one."""

    @property
    def no_prompt(self) -> AnyPrompts:
        """The manual prompt, which is the template's words alone, as a population of one without tokens."""

    def prompts(self, latents: Latents) -> AnyPrompts:
        """The n prompts of latents (n, d), always the same for the same latents."""


@dataclass(frozen=True)
class Recipe:
    """What A (D, d) is drawn from: all that must be told for the same A to be drawn elsewhere."""

    seed: int
    """The seed of the draw."""
    intrinsic_dim: int
    """d, the number of A's columns."""
    projection: Projection
    """The distribution of A's entries: see `random_projection`."""
    scale: float
    """The size of A's entries: half of the width for uniform ones, else their standard deviation."""
    tied: bool = False
    """Whether all prompt tokens are moved alike: A is drawn for one token (H, d) and repeated for each of the T."""


@dataclass(frozen=True)
class PromptSpace:
    """The space of all soft prompts p0 + A z."""

    p0: Prompts
    """(1, T, H) the prompt at z = 0."""
    matrix: NDArray[np.float32]
    """(D, d) A, D = T * H."""
    recipe: Recipe | None = None
    """What A was drawn by (none: A was made otherwise)."""

    def __post_init__(self) -> None:
        if self.matrix.shape[0] != self.p0.size:
            raise ConfigError(f"A has {self.matrix.shape[0]} rows but p0 has {self.p0.size} numbers (T * H).")

    @classmethod
    def drawn(cls, p0: Prompts, recipe: Recipe) -> "PromptSpace":
        """Make the space around p0 whose A the recipe draws.

        Raises:
            ConfigError: as `random_projection`.
        """
        r, n_times = recipe, p0.shape[1] if recipe.tied else 1
        matrix = random_projection(r.seed, p0.size // n_times, r.intrinsic_dim, r.projection, r.scale)
        return cls(p0, np.tile(matrix, (n_times, 1)), recipe)

    @property
    def intrinsic_dim(self) -> int:
        """The intrinsic dimension d."""
        return int(self.matrix.shape[1])

    @property
    def n_prompt_tokens(self) -> int:
        """The number of prompt tokens T."""
        return int(self.p0.shape[1])

    @property
    def no_prompt(self) -> Prompts:
        """The manual prompt (1, 0, H), which is the template's words alone."""
        return np.zeros((1, 0, self.p0.shape[2]), np.float32)

    def prompts(self, latents: Latents) -> Prompts:
        """The prompts (n, T, H) of latents (n, d)."""
        offsets = latents.astype(np.float32) @ self.matrix.T
        return np.asarray(self.p0 + offsets.reshape(len(latents), *self.p0.shape[1:]))

    def checksum(self) -> str:
        """SHA-256 over p0 and A, to compare spaces between machines."""
        digest = hashlib.sha256(np.ascontiguousarray(self.p0).tobytes())
        digest.update(np.ascontiguousarray(self.matrix).tobytes())
        return digest.hexdigest()


@runtime_checkable
class LatentBackend(Protocol):
    """The protocol, beside `Backend`, of a backend that can hold a prompt space: z travels to it instead of prompts."""

    def latent_scores(self, latents: Latents, space: PromptSpace, encoded: Encoded) -> Scores:
        """The float32 scores (n, B, K) that `label_scores` gives for `space.prompts(latents)`, latents (n, d)."""


@runtime_checkable
class LatentTargetBackend(Protocol):
    """The protocol, beside `TargetBackend`, of a backend that can hold a prompt space."""

    def latent_log_likelihoods(self, latents: Latents, space: PromptSpace, encoded: Any) -> RowScores:
        """The float32 log-likelihoods (n, B) that `target_log_likelihoods` gives for `space.prompts(latents)`, latents
        (n, d)."""
