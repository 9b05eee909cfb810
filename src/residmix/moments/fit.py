"""Results of least squares: coefficients, rank, aliased columns, residual sums of squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.moments.affine import Affine

__all__ = ["LinearFit"]

Array = NDArray[np.float64]


@dataclass
class LinearFit:
    """Solution of ``x ~ constant + (a - origin_a) coef`` for d features on q design columns.

    Attributes
    ----------
    coef : ndarray (q, d)
        With the smallest contributions if the design is rank-deficient (:mod:`residmix.moments.solving.aliased`).
    constant : ndarray (d,)
        ``x - origin_x = constant + (a - origin_a) coef``.
    origin_a, origin_x : ndarray (q,), (d,)
    offset_a : ndarray (n_groups, q)
        Mean of the design is ``origin_a + offset_a[group[j]]`` over the rows that feature j has.
    group : ndarray of int (d,)
        Features with the same rows share a group; there is one unless values are missing or penalties differ.
    covariance : ndarray (n_groups, q, q)
        Of the coefficients, for a residual variance of 1.
    rank : int
        Of the centred design, so the intercept isn't counted; the smallest over groups.
    condition_number : float
        Of the centred design with columns scaled to unit variance, over its range; the largest over groups.
    degrees : ndarray (n_groups,)
        Effective number of columns: the rank, or with a penalty the trace of the hat matrix; without intercept.
    aliased : dict of int to tuple of int
        For each column that is determined by earlier columns, these columns; -1 stands for the intercept.
    rss, tss : ndarray (d,)
        Weighted sums of squares of the residual, and of the centred feature.
    count, weight : ndarray (d,)
        Rows of positive weight and sum of weights, by feature.
    scale : ndarray (n_groups, q)
        Spread of the columns; 1 for those that don't vary.
    null : tuple of ndarray (q, k)
        By group, orthonormal directions of ``coef * scale`` that don't change the fit.
    unknown : ndarray of bool (n_groups, q + 1)
        Coefficients, and intercept, that can't be estimated, given the columns of their own and of earlier terms.
    """

    coef: Array
    constant: Array
    origin_a: Array
    origin_x: Array
    offset_a: Array
    group: NDArray[np.int64]
    covariance: Array
    rank: int
    condition_number: float
    degrees: Array
    aliased: dict[int, tuple[int, ...]]
    rss: Array
    tss: Array
    count: Array
    weight: Array
    # none of them in model files of before
    scale: Array | None = None
    null: tuple[Array, ...] = ()
    unknown: NDArray[np.bool_] | None = None

    @property
    def effects(self) -> tuple[Array, ...]:
        """Effects of the levels of absorbed factors, of which there are none here."""
        return ()

    @property
    def level_weight(self) -> tuple[Array, ...]:
        """Their weights."""
        return ()

    @property
    def nested(self) -> dict[int, tuple[int, ...]] | None:
        """Those that others determine."""
        return None

    @property
    def intercept(self) -> Array:
        """Prediction where every design column is 0, (d,)."""
        return Affine(self.origin_x, self.origin_a, self.coef, self.constant).intercept

    @property
    def residual_degrees(self) -> Array:
        """Rows less intercept less effective columns, (d,); never below 0."""
        return np.maximum(self.count - 1.0 - self.degrees[self.group], 0.0)

    def affine(self, n_removed: int | None = None) -> Affine:
        """Return the map to the residual, which removes the first `n_removed` columns and the mean."""
        kept = slice(len(self.coef) if n_removed is None else n_removed, None)
        # A preserved effect stays, but not its mean: the residual is centred.
        mean_kept = np.einsum("dk,kd->d", self.offset_a[self.group][:, kept], self.coef[kept])
        return Affine(self.origin_x, self.origin_a[: kept.start], self.coef[: kept.start], self.constant + mean_kept)

    def of_least_norm(self) -> tuple[Array, Array]:
        """Return the minimum-norm coefficients and intercept: the least-squares solution of [a 1] b = x."""
        coef, intercept = self.coef.copy(), self.intercept
        for g, null in enumerate(self.null):
            if null.shape[1]:
                assert self.scale is not None
                own = self.group == g
                directions = null / self.scale[g][:, None]
                moved = -(self.origin_a + self.offset_a[g]) @ directions
                basis, _ = np.linalg.qr(np.vstack([directions, moved]))
                along = basis @ (basis.T @ np.vstack([coef[:, own], intercept[own]]))
                coef[:, own] -= along[:-1]
                intercept[own] -= along[-1]
        return coef, intercept
