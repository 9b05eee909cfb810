"""Maps of rows from the covariance of their level to the pooled one, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dgemm, dtrmm

from residmix.effects.spread.rescale import Rescaled
from residmix.moments.by_level import level_of
from residmix.rows.block import Block
from residmix.rows.scratch import scratch
from residmix.rows.threads import lazy

__all__ = ["Covariances", "Recoloured", "along_axes"]

Array = NDArray[np.float64]


def along_axes(change: Array) -> Array | None:
    """Return the diagonal (K,) of a map that has nothing else; None if it has."""
    diagonal = np.diagonal(change)
    if change[-1:, :-1].any():
        return None  # as a glance tells, nearly always
    return diagonal if np.count_nonzero(change) == np.count_nonzero(diagonal) else None


@dataclass(frozen=True)
class Covariances:
    r"""Maps that bring the covariance of each level to the pooled one.

    A row u, in units of the standard deviations s and with effects on mean and spread removed, becomes

    .. math:: u + V \big((A_k - I) V'u + b_k\big)

    Attributes
    ----------
    columns : slice
        Of the factor in the design.
    coded : ndarray (L, w)
        Design columns of each level. A row of none of them isn't changed.
    sd : ndarray (d,)
        0 for features that stay as they are.
    axes : ndarray (d, K)
        V, orthonormal.
    maps, shifts : ndarray (L, K, K), (L, K)
    distances : ndarray (L, 2) or None
        Divergence of the level's covariance from the pooled one, before and after, in nats per direction; None if they
        follow from the moments (:func:`residmix.effects.covariance.distances.level_distances`).
    within : bool
        Whether the pooled covariance is that about the means of the levels.
    """

    columns: slice
    coded: Array
    sd: Array
    axes: Array
    maps: Array
    shifts: Array
    distances: Array | None = None
    within: bool = True

    @lazy
    def stretches(self) -> list[Array | None]:
        """The diagonals of the maps that have nothing else."""
        return [along_axes(own) for own in self.maps]

    def levels(self, design: Array) -> NDArray[np.intp]:
        """Return the level index of each design row, (b,); L for none of them, as for levels that fit didn't see."""
        if not len(self.coded):
            return np.zeros(len(design), dtype=np.intp)
        own = level_of(design, self.columns, self.coded)
        far = np.abs(design[:, self.columns] - self.coded[own]).max(axis=1, initial=0.0)
        return np.where(far > 1e-9, len(self.coded), own)


@dataclass(frozen=True)
class Recoloured:
    """Residual with the spread and the covariance of its level adjusted to the pooled ones, or the inverse.

    Attributes
    ----------
    rescaled : Rescaled
        The map applied before; with sign 1, after.
    covariances : Covariances
    """

    rescaled: Rescaled
    covariances: Covariances

    def __call__(self, block: Block) -> NDArray[Any]:
        exact = replace(block, X=np.asarray(block.X, dtype=np.float64))
        if self.rescaled.affine.sign < 0:
            out = np.ascontiguousarray(self.rescaled(exact))
            self._add(self._change(exact, out, back=False), out)
        else:
            out = np.array(exact.X, order="C")
            self._add(self._change(exact, out, back=True), out)
            out = self.rescaled(replace(exact, X=out))
        return np.asarray(out, dtype=block.X.dtype)

    def _change(self, block: Block, residual: Array, *, back: bool) -> Array:
        """Return what is added to scores (b, K), of rows that have these residuals."""
        own = self.covariances
        used = own.sd > 0
        to_scores = (np.where(used, 1.0, 0.0) / np.where(used, own.sd, 1.0))[:, None] * own.axes
        scores = scratch((len(residual), own.axes.shape[1]), np.float64)
        np.matmul(residual if used.all() else np.where(used, residual, 0.0), to_scores, out=scores)
        scores -= self.rescaled.kept_along(block, to_scores)
        if np.isnan(scores.sum()):
            rows = np.flatnonzero(np.isnan(scores).any(axis=1))
            raise ValueError(
                f"covariance= allows no missing values, but {len(rows)} rows have some (the first is row "
                f"{block.start + rows[0]}); fill them, as with GaussianMixture(missing='em').impute, or leave these "
                "rows out"
            )
        levels = own.levels(block.design)
        for k in np.unique(levels):
            at = np.flatnonzero(levels == k)
            if k == len(own.maps):
                scores[at] = 0.0
                continue
            of_level = scores[at]
            moved = _undone(own, k, of_level) if back else _done(own, k, of_level)
            moved -= of_level
            scores[at] = moved
        return scores

    def _add(self, change: Array, out: Array) -> Array:
        """Add changes of scores (b, K) to rows (b, d), in place."""
        from_scores = self.covariances.sd[:, None] * self.covariances.axes
        # BLAS adds the product in place; it wants columns, hence the transposes
        dgemm(1.0, from_scores, change.T, beta=1.0, c=out.T, overwrite_c=True)
        return out


def _done(own: Covariances, k: int, scores: Array) -> Array:
    stretch = own.stretches[k]
    if stretch is not None:
        moved: Array = scores * stretch
    else:
        # lower triangular: half the multiplications
        moved = dtrmm(1.0, own.maps[k].T, scores.T, lower=0, trans_a=1).T
    moved += own.shifts[k]
    return moved


def _undone(own: Covariances, k: int, scores: Array) -> Array:
    stretch = own.stretches[k]
    if stretch is not None:
        return np.asarray((scores - own.shifts[k]) / stretch)
    return np.asarray(solve_triangular(own.maps[k], (scores - own.shifts[k]).T, lower=True, check_finite=False).T)
