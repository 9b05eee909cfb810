"""Steps of a fit of log variances: where it begins, scoring and Newton's steps, how far they may go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.rows.threads import one_blas_thread

__all__ = ["Steps", "beginning", "bounded", "pinv", "spread_of"]

Array = NDArray[np.float64]

# With few rows the expected and the observed information differ, and scoring crawls: then Newton's steps take over. Of
# few columns and features they do so near the optimum, with the information of one pass for as long as it serves.
_SCORING_PASSES = 10
_NEAR, _QUICK = 0.1, 0.2
_FEW_COLUMNS, _FEW_NUMBERS = 40, 1 << 23
# Share of the expected information that is added to the observed one, which may be singular.
_TINY = 1e-12


def beginning(start: tuple[slice, Array, Array], mean: Array, sd: Array, pooled: Array) -> Array:
    """Return coefficients (q + 1, d) of [1, standardised design] with which levels have given log variances."""
    columns, coded, of_level = start
    effects = np.linalg.pinv(np.column_stack([coded, np.ones(len(coded))])) @ (of_level - np.log(pooled))
    coef = np.zeros((1 + len(mean), len(pooled)))
    coef[0] = effects[-1] + mean[columns] @ effects[:-1]
    coef[1:][columns] = effects[:-1] * sd[columns, None]
    return coef


class Steps:
    """Scoring, then Newton's steps: with an information for each feature that is kept while steps shrink quickly."""

    def __init__(self, used: NDArray[np.intp], expected: Array, pull: Array, d: int) -> None:
        with one_blas_thread():
            values, vectors = np.linalg.eigh(expected)
        kept = values > 1e-14 * values.max(initial=0.0)
        # coordinates in which the expected information is the identity
        self.to = vectors[:, kept] / np.sqrt(values[kept])
        self.used, self.pull, self.largest = used, pull, np.inf
        self.inverse: Array | None = None
        self.early = len(used) <= _FEW_COLUMNS and d * len(used) ** 2 <= _FEW_NUMBERS

    def look(self, turn: int, moving: Array) -> bool:
        """Tell whether the next pass should sum the observed information."""
        largest, before = float(moving.max(initial=0.0)), self.largest
        self.largest = largest
        if turn >= _SCORING_PASSES or (self.early and self.inverse is None):
            return turn >= _SCORING_PASSES or (turn > 0 and largest < _NEAR)
        return self.inverse is not None and largest > _QUICK * before

    def of(self, slope: Array, observed: Array | None) -> Array:
        """Return the step (q, d) for a score, with the observed information (d, pairs) where that was summed."""
        if observed is not None:
            self.inverse = self._inverse(observed)
        score = self.to.T @ slope
        if self.inverse is not None:
            score = np.matmul(self.inverse, score.T[:, :, None])[:, :, 0].T
        return np.asarray(self.to @ score)

    def _inverse(self, observed: Array) -> Array:
        q = int(np.sqrt(2 * observed.shape[1]))
        left, right = np.triu_indices(q)
        information = np.empty((len(observed), q, q))
        information[:, left, right] = information[:, right, left] = observed
        information = information[:, self.used[:, None], self.used] + self.pull
        with one_blas_thread():
            own = self.to.T @ information @ self.to
            own += _TINY * np.eye(own.shape[1])
            return np.asarray(np.linalg.inv(own))


def spread_of(step: Array, gram: Array) -> Array:
    """Root mean square over the rows of the change of log variance that a step makes, (d,)."""
    return np.asarray(np.sqrt(np.clip(np.sum(step * (gram @ step), axis=0), 0.0, None) / gram[0, 0]))


def bounded(step: Array, gram: Array) -> Array:
    """Shorten steps that change the log variance by more than 2, which overshoot far from the optimum."""
    return step * np.minimum(1.0, 2.0 / np.maximum(spread_of(step, gram), 1e-300))


def pinv(matrix: Array, rcond: float) -> Array:
    """Return the pseudoinverse of a symmetric matrix."""
    with one_blas_thread():  # other threads would only wait for it
        return np.asarray(np.linalg.pinv(matrix, rcond=rcond, hermitian=True))
