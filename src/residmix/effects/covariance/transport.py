"""Rows whose covariance is brought from that of their level to the pooled one, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.spread.rescale import Rescaled
from residmix.moments.by_level import level_of
from residmix.rows.block import Block

__all__ = ["Covariances", "Recoloured"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Covariances:
    r"""What brings the covariance of each level to the pooled one.

    With u a row after all effects on mean and spread, in standard deviations s, V the leading directions of the pooled
    covariance and k the row's level, it becomes

    .. math:: u + V \big((A_k - I) V'u + b_k\big)

    Attributes
    ----------
    columns : slice
        Of the factor in the design.
    coded : ndarray (L, w)
        Its levels in them. A row of none of them stays as it is.
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
        """Return which level each design row has, (b,); L for none of them, as levels that fit didn't see."""
        if not len(self.coded):
            return np.zeros(len(design), dtype=np.intp)
        own = level_of(design, self.columns, self.coded)
        far = np.abs(design[:, self.columns] - self.coded[own]).max(axis=1, initial=0.0)
        return np.where(far > 1e-9, len(self.coded), own)


@dataclass(frozen=True)
class Recoloured:
    """Residual with the spread evened out and the covariance of its level brought to the pooled one, or back.

    Attributes
    ----------
    rescaled : Rescaled
        What comes before, or with sign 1 after.
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
        assert block.design is not None
        own = self.covariances
        used = own.sd > 0
        u = np.where(used, residual - self.rescaled.kept(block), 0.0) / np.where(used, own.sd, 1.0)
        if np.isnan(u).any():
            rows = np.flatnonzero(np.isnan(u).any(axis=1))
            raise ValueError(
                f"covariance= needs every feature of a row, and {len(rows)} rows have gaps (row "
                f"{block.start + rows[0]}); fill them (GaussianMixture(missing='em').impute), or leave these rows out"
            )
        scores = u @ own.axes
        change = np.zeros_like(scores)
        levels = own.levels(block.design)
        for k in np.unique(levels[levels < len(own.maps)]):
            at = levels == k
            if back:
                change[at] = np.linalg.solve(own.maps[k], (scores[at] - own.shifts[k]).T).T - scores[at]
            else:
                change[at] = scores[at] @ own.maps[k].T + own.shifts[k] - scores[at]
        return (change @ own.axes.T) * own.sd
