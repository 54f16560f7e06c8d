"""A search by a model of the label scores: a query tells B x K numbers, and a model of them in z foresees the loss.

CMA-ES learns one number from a query. Here the scores of all rows are regressed on z (`KernelRidge`), the cross-entropy
of the foreseen scores is minimised within a trust region by damped Gauss-Newton steps, and the minimiser is scored for
real among the next candidates. The others explore directions that are new.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bbt.blas import one_thread
from bbt.optimizers.base import Settings
from bbt.optimizers.kernel_ridge import KernelRidge
from bbt.types import Labels, Latents, Losses, Scores

N_STEPS = 2
"""The candidates of a generation that are minimisers of the model: within the trust region, and within half of it."""
SPREAD = 0.5
"""The standard deviation of exploring candidates around the centre after the first generation, in units of sigma0."""
KEPT = 100
"""The points that the model is fitted to, those nearest to the centre: fits take time in their cube."""
HELD = 500
"""The points that are remembered, the newest and the best, so that memory does not grow with the budget."""
ITERATIONS, HALVINGS, TOLERANCE = 12, 8, 1e-4


class KernelSurrogate:
    """An optimizer with a trust region around the best candidate that it has seen. Told no scores, it models the
    losses themselves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rng = np.random.RandomState(settings.seed)
        self._points = np.zeros((0, settings.intrinsic_dim))
        self._outputs = np.zeros((0, 0))  # (n, B K) the scores, or (n, 1) the losses
        self._losses = np.zeros(0)  # (n,)
        self._goal: _Goal = _Itself()
        self._radius = 0.5 * settings.sigma0 * np.sqrt(settings.intrinsic_dim)
        self._promised: list[float] = []  # what the model foresaw for the steps of this generation
        self._model: KernelRidge | None = None

    def ask(self) -> Latents:
        """The next population (n, d): minimisers of the model first, then points that explore."""
        n = self._settings.population_size
        with one_thread():
            steps = [self._minimiser(self._radius / 2**i) for i in range(min(N_STEPS, n // 2) if self._n_told else 0)]
            self._promised = [promised for _, promised in steps]
            explored = self._explored(n - len(steps))
        return self._clipped(np.array([z for z, _ in steps] + list(explored)))

    def tell(self, latents: Latents, losses: Losses) -> None:
        """Take note of losses (n,) alone: they are what is modelled."""
        self._note(latents, losses, losses[:, None], _Itself())

    def tell_scores(self, latents: Latents, losses: Losses, scores: Scores, labels: Labels) -> None:
        """Take note of the candidates' losses (n,), label scores (n, B, K) and the rows' labels (B,). A candidate whose
        scores are not finite is left out of the model."""
        self._note(latents, losses, scores.reshape(len(scores), -1).astype(np.float64), _CrossEntropy(labels))

    def _note(self, latents: Latents, losses: Losses, outputs: NDArray[np.float64], goal: "_Goal") -> None:
        sound = np.asarray(np.isfinite(outputs).all(axis=1))
        self._goal = goal
        self._adapt(outputs, sound)
        before = self._outputs if self._n_told else outputs[:0]
        self._points = np.concatenate([self._points, latents[sound]])
        self._outputs = np.concatenate([before, outputs[sound]])
        self._losses = np.concatenate([self._losses, losses[sound]])
        self._forget()
        self._model = None

    def _forget(self) -> None:
        """Keep the newest points, and the best."""
        kept = np.arange(self._n_told)[-HELD:]
        if self._n_told and self._best < kept[0]:
            kept[0] = self._best
        self._points, self._outputs, self._losses = self._points[kept], self._outputs[kept], self._losses[kept]

    def _adapt(self, outputs: NDArray[np.float64], sound: NDArray[np.bool_]) -> None:
        """Change the trust region's radius by what the steps, which come before the other candidates, have kept of what
        they promised; a step that is not sound has kept nothing."""
        if not self._promised:
            return
        before = self._goal.value(self._outputs[self._best])
        steps = zip(outputs[: len(self._promised)], sound, strict=False)
        found = np.array([self._goal.value(row) if fine else np.inf for row, fine in steps])
        kept = (before - found[0]) / max(before - self._promised[0], 1e-12)
        if found.min() >= before:
            self._radius *= 0.6
        elif found.argmin() > 0:
            self._radius *= 0.65  # the shorter step was the better one
        else:
            self._radius *= 1.5 if kept > 0.5 else 1.15

    def _minimiser(self, radius: float) -> tuple[NDArray[np.float64], float]:
        """The point (d,) that minimises the model within a radius of the centre, and the value that it promises."""
        model = self._fitted()
        at = np.zeros(model.n_coordinates)
        outputs = model.outputs(at)
        value = self._goal.value(outputs)
        for _ in range(ITERATIONS):
            step = _step(at, *self._goal.slopes(outputs, model.jacobian(at)), radius)
            for _ in range(HALVINGS):
                trial = model.outputs(at + step)
                promised = self._goal.value(trial)
                if promised < value:
                    break
                step = step / 2
            else:
                break
            gained, value = value - promised, promised
            at, outputs = at + step, trial
            if gained < TOLERANCE * abs(value):
                break
        return model.point(at), value

    def _fitted(self) -> KernelRidge:
        """The model of the points nearest to the centre, which is the first of them."""
        if self._model is None:
            distances = np.square(self._points - self._centre).sum(axis=1)
            distances[self._best] = -1.0
            nearest = np.argsort(distances, kind="stable")[:KEPT]
            self._model = KernelRidge(self._points[nearest], self._outputs[nearest])
        return self._model

    def _explored(self, n: int) -> Latents:
        """Points (n, d) around the centre, in directions that the last points have not gone in; in the first generation
        the first of them is z = 0."""
        d, sigma = self._settings.intrinsic_dim, self._settings.sigma0
        drawn = sigma * self._rng.standard_normal((n, d))
        if not self._n_told:
            drawn[0] = 0.0
            return np.asarray(drawn)
        offsets = self._points[-min(d // 2, KEPT) :] - self._centre if d > 1 else self._points[:0]
        known = np.linalg.qr(offsets[offsets.any(axis=1)].T)[0]
        fresh = drawn - (drawn @ known) @ known.T
        fresh *= np.linalg.norm(drawn, axis=1, keepdims=True) / np.linalg.norm(fresh, axis=1, keepdims=True)
        return np.asarray(self._centre + SPREAD * fresh)

    @property
    def _n_told(self) -> int:
        return len(self._losses)

    @property
    def _best(self) -> int:
        return int(self._losses.argmin())

    @property
    def _centre(self) -> NDArray[np.float64]:
        """The best candidate (d,) so far."""
        return np.asarray(self._points[self._best])

    @property
    def mean(self) -> NDArray[np.float64]:
        """The model's minimiser (d,) in the trust region: the step that would be scored next."""
        if not self._n_told:
            return np.zeros(self._settings.intrinsic_dim)
        with one_thread():
            return self._clipped(self._minimiser(self._radius)[0])

    def _clipped(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        bounds = self._settings.bounds
        return points if bounds is None else points.clip(*bounds)


class _Goal(Protocol):
    """What is minimised, as a function of the model's outputs (m,)."""

    def value(self, outputs: NDArray[np.float64]) -> float:
        """The value at these outputs."""

    def slopes(
        self, outputs: NDArray[np.float64], jacobian: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The gradient (r,) and the Gauss-Newton curvature (r, r) by coordinates in which the outputs' derivatives are
        the jacobian (m, r)."""


class _Itself:
    """The one output, a loss."""

    def value(self, outputs: NDArray[np.float64]) -> float:
        return float(outputs[0])

    def slopes(
        self, outputs: NDArray[np.float64], jacobian: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return jacobian[0], np.zeros((jacobian.shape[1],) * 2)


class _CrossEntropy:
    """The mean cross-entropy of rows' label scores, outputs (B K,), with labels (B,)."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels

    def value(self, outputs: NDArray[np.float64]) -> float:
        scores = outputs.reshape(len(self._labels), -1)
        highest = scores.max(axis=1, keepdims=True)
        totals = highest[:, 0] + np.log(np.exp(scores - highest).sum(axis=1))
        return float((totals - scores[np.arange(len(scores)), self._labels]).mean())

    def slopes(
        self, outputs: NDArray[np.float64], jacobian: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        scores = outputs.reshape(len(self._labels), -1)
        n_rows, n_labels = scores.shape
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        gradient = jacobian.T @ (probabilities - np.eye(n_labels)[self._labels]).ravel() / n_rows
        weighted = jacobian * probabilities.reshape(-1, 1)
        means = weighted.reshape(n_rows, n_labels, -1).sum(axis=1)
        return gradient, (weighted.T @ jacobian - means.T @ means) / n_rows


def _step(
    at: NDArray[np.float64], gradient: NDArray[np.float64], curvature: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """The step (r,) from `at` (r,) to the minimum of the quadratic model where that lies within the radius of the
    origin, else to its minimum with a penalty on the distance from the origin that holds it within."""
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    values, slope, here = values.clip(0), vectors.T @ gradient, vectors.T @ at

    def there(penalty: float) -> NDArray[np.float64]:
        return np.asarray(here - (slope + penalty * here) / (values + penalty))

    low, high = 1e-9, 1e3
    while np.linalg.norm(there(high)) > radius and high < 1e300:
        high *= 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if np.linalg.norm(there(middle)) > radius else (low, middle)
    return np.asarray(vectors @ there(high) - at)
