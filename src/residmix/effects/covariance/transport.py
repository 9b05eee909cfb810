"""Maps of rows from the covariance of their level to the pooled one, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.spread.rescale import Rescaled
from residmix.moments.by_level import level_of
from residmix.rows.block import Block

__all__ = ["Covariances", "Recoloured", "along_axes"]

Array = NDArray[np.float64]


def along_axes(change: Array) -> Array | None:
    """Return the diagonal (K,) of a map that has nothing else; None if it has."""
    diagonal = np.diagonal(change)
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
    distances : ndarray (L, 2)
        Divergence of the level's covariance from the pooled one, before and after, in nats per direction.
    """

    columns: slice
    coded: Array
    sd: Array
    axes: Array
    maps: Array
    shifts: Array
    distances: Array

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
            residual = self.rescaled(exact)
            out = residual + self._change(exact, residual, back=False)
        else:
            out = self.rescaled(replace(exact, X=exact.X + self._change(exact, exact.X, back=True)))
        return np.asarray(out, dtype=block.X.dtype)

    def _change(self, block: Block, residual: Array, *, back: bool) -> Array:
        """Return what is added to residuals (b, d)."""
        own = self.covariances
        used = own.sd > 0
        u = residual - self.rescaled.kept(block)
        u[:, ~used] = 0.0
        scores = u @ ((np.where(used, 1.0, 0.0) / np.where(used, own.sd, 1.0))[:, None] * own.axes)
        if np.isnan(scores).any():
            rows = np.flatnonzero(np.isnan(scores).any(axis=1))
            raise ValueError(
                f"covariance= allows no missing values, but {len(rows)} rows have some (the first is row "
                f"{block.start + rows[0]}); fill them, as with GaussianMixture(missing='em').impute, or leave these "
                "rows out"
            )
        change = np.zeros_like(scores)
        levels = own.levels(block.design)
        for k in np.unique(levels[levels < len(own.maps)]):
            at, stretch = levels == k, along_axes(own.maps[k])
            if stretch is not None:
                moved = (scores[at] - own.shifts[k]) / stretch if back else scores[at] * stretch + own.shifts[k]
                change[at] = moved - scores[at]
            elif back:
                change[at] = np.linalg.solve(own.maps[k], (scores[at] - own.shifts[k]).T).T - scores[at]
            else:
                change[at] = scores[at] @ own.maps[k].T + own.shifts[k] - scores[at]
        return np.asarray(change @ (own.sd[:, None] * own.axes).T)
