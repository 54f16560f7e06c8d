"""Kernel ridge regression of many outputs at once; its settings are chosen by left-out points in closed form."""

import numpy as np
from numpy.typing import NDArray

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The squared length scales that are tried, in units of the median squared distance between two points."""
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""The ridges that are tried, in units of the mean squared distance from the first point."""


class KernelRidge:
    """A regression of outputs (n, m) on points (n, d), the first of which is met exactly.

    The kernel is Gaussian, l^2 exp(-|x - x'|^2 / (2 l^2)): with a large l it is the linear model. Everything is n x n.
    What the model knows lies in the span of the n points, in which it has r <= n - 1 coordinates, the first point at 0.
    """

    def __init__(self, points: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        offsets = points - points[0]
        gram = offsets @ offsets.T
        values, vectors = np.linalg.eigh(gram)
        kept = values > 1e-10 * max(values[-1], 1e-300)
        self._origin = points[0]
        self._directions = offsets.T @ (vectors[:, kept] / np.sqrt(values[kept]))  # (d, r), orthonormal
        self._coordinates = vectors[:, kept] * np.sqrt(values[kept])  # (n, r)
        self._mean = outputs.mean(axis=0)
        self._choose(gram, outputs - self._mean)
        self._mean = self._mean + outputs[0] - self.outputs(np.zeros(self.n_coordinates))

    def _choose(self, gram: NDArray[np.float64], outputs: NDArray[np.float64]) -> None:
        """Take the length scale and the ridge whose squared errors on left-out points are least. With the hat matrix H,
        its intercept included, a left-out point's error is (y_i - (H y)_i) / (1 - H_ii)."""
        n, squares = len(gram), np.diagonal(gram)
        distances = (squares[:, None] + squares - 2 * gram).clip(0)
        typical = max(float(np.median(distances[np.triu_indices(n, 1)])), 1e-12) if n > 1 else 1.0
        centring = np.eye(n) - 1 / n
        least = np.inf
        for length in typical * np.array(LENGTHS):
            kernel = length * np.exp(-distances / (2 * length))
            values, vectors = np.linalg.eigh(centring @ kernel @ centring)
            values, turned = values.clip(0), vectors.T @ outputs
            for ridge in max(float(squares.mean()), 1e-12) * np.array(RIDGES):
                shrunk = values / (values + ridge)
                free = (1 - 1 / n - (vectors**2) @ shrunk).clip(1e-6)
                error = float(np.square((outputs - vectors @ (shrunk[:, None] * turned)) / free[:, None]).sum())
                if error < least:
                    least, self._length = error, float(length)
                    weights = vectors @ (turned / (values + ridge)[:, None])
                    self._weights = weights - weights.mean(axis=0)

    @property
    def n_coordinates(self) -> int:
        """The number of coordinates r."""
        return int(self._coordinates.shape[1])

    def point(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The point (d,) that has these coordinates (r,)."""
        return np.asarray(self._origin + self._directions @ coordinates)

    def outputs(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The outputs (m,) that are foreseen at coordinates (r,)."""
        return np.asarray(self._mean + self._kernel(coordinates) @ self._weights)

    def jacobian(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The derivatives (m, r) of the outputs at coordinates (r,)."""
        slopes = (self._coordinates - coordinates) * (self._kernel(coordinates) / self._length)[:, None]
        return np.asarray(self._weights.T @ slopes)

    def _kernel(self, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The kernel (n,) between coordinates (r,) and the points."""
        distances = np.square(self._coordinates - coordinates).sum(axis=1)
        return np.asarray(self._length * np.exp(-distances / (2 * self._length)))
