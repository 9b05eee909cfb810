"""Steps of a fit of log variances: where it begins, scoring and Newton's steps, how far they may go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.rows.threads import one_blas_thread

__all__ = ["Pairs", "Steps", "beginning", "bounded", "pinv", "spread_of"]

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


@dataclass(frozen=True)
class Pairs:
    """Which products of columns the observed information needs, and of which columns.

    The columns are those of [1, standardised design]; those of a factor as they are in the design, where at most rows
    the product of two of them is 0.

    Attributes
    ----------
    left, right : ndarray of int (p,)
    turn : ndarray (q, q)
        From these columns to the standardised ones.
    plain : slice or None
        Columns of the design that are taken as they are.
    """

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    turn: Array
    plain: slice | None = None

    @classmethod
    def of(cls, mean: Array, sd: Array, factor: slice | None = None, coded: Array | None = None) -> Pairs:
        """Return the pairs of columns with such means and standard deviations, one factor's levels coded like that."""
        q = 1 + len(mean)
        wanted, turn = np.triu(np.ones((q, q), dtype=bool)), np.eye(q)
        if factor is not None and coded is not None:
            own = np.arange(q)[1:][factor]
            wanted[np.ix_(own, own)] &= (coded != 0).T @ (coded != 0)
            turn[own, own] = 1.0 / sd[factor]
            turn[0, own] = -mean[factor] / sd[factor]
        left, right = np.nonzero(wanted)
        return cls(left, right, turn, factor)

    def products(self, a: Array, design: Array) -> Array:
        """Return the products of pairs, (b, p), given [1, standardised design] and the design."""
        if self.plain is not None:
            a = a.copy()
            a[:, 1:][:, self.plain] = design[:, self.plain]
        return np.asarray(a[:, self.left] * a[:, self.right])

    def information(self, observed: Array) -> Array:
        """Return the information (d, q, q) in these columns from sums of products (d, p)."""
        found = np.zeros((len(observed), *self.turn.shape))
        found[:, self.left, self.right] = found[:, self.right, self.left] = observed
        return found


class Steps:
    """Scoring, then Newton's steps: with an information for each feature that is kept while steps shrink quickly."""

    def __init__(self, used: NDArray[np.intp], expected: Array, pull: Array, d: int, pairs: Pairs) -> None:
        with one_blas_thread():
            values, vectors = np.linalg.eigh(expected)
        kept = values > 1e-14 * values.max(initial=0.0)
        # coordinates in which the expected information is the identity
        self.to = vectors[:, kept] / np.sqrt(values[kept])
        self.pull, self.largest, self.pairs = self.to.T @ pull @ self.to, np.inf, pairs
        self.turned = pairs.turn[:, used] @ self.to
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
        """Return the step (q, d) for a score, with the observed information (d, p) where that was summed."""
        if observed is not None:
            self.inverse = self._inverse(observed)
        score = self.to.T @ slope
        if self.inverse is not None:
            score = np.matmul(self.inverse, score.T[:, :, None])[:, :, 0].T
        return np.asarray(self.to @ score)

    def _inverse(self, observed: Array) -> Array:
        with one_blas_thread():
            own = self.turned.T @ self.pairs.information(observed) @ self.turned
            own += self.pull + _TINY * np.eye(own.shape[1])
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
