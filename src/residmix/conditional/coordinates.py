"""The coordinates that a mixture given metadata is fitted in: least-squares residuals, orthonormal design rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.moments.absorbed.sums import FactorMoments
from residmix.moments.affine import Affine
from residmix.moments.by_level import Grouping, level_of
from residmix.moments.linear import Moments
from residmix.rows.block import Block
from residmix.rows.scratch import scratch

__all__ = ["ToResidual", "to_residual"]

Floats = NDArray[np.float64]

# Directions of the design whose variance is below this share of the largest are aliased.
ALIASED = 1e-12


@dataclass(frozen=True)
class ToResidual:
    """Block of (x, a) to block of (least-squares residual, orthonormal design row), both float64.

    Attributes
    ----------
    affine : Affine
        To the least-squares residual.
    basis : ndarray (p, r)
        u = (a - origin) basis - offset.
    offset : ndarray (r,)
    levels : tuple of int and ndarray (L, w), or None
        The first column of a factor and the codes of its levels there, by which covariances differ.
    """

    affine: Affine
    basis: Floats
    offset: Floats
    levels: tuple[int, Floats] | None = None

    def codes(self, design: Floats) -> tuple[NDArray[np.intp], ...]:
        """Return the level of each design row, if covariances differ by level."""
        if self.levels is None:
            return ()
        first, coded = self.levels
        return (level_of(design, slice(first, first + coded.shape[1]), coded),)

    def __call__(self, block: Block) -> Block:
        X = np.asarray(block.X, dtype=np.float64)
        residual, u = scratch(X.shape, np.float64), scratch((block.n_rows, self.basis.shape[1]), np.float64)
        self.affine.into(replace(block, X=X), residual)
        if u.shape[1]:
            np.matmul(block.design[:, : len(self.basis)] - self.affine.origin_a, self.basis, out=u)
            u -= self.offset
        return Block(block.start, residual, u, self.codes(block.design), block.weight)


def to_residual(affine: Affine, moments: Moments, p: int, grouping: Grouping | None = None) -> ToResidual:
    """Return the map to least-squares residuals and to orthonormal, centred coordinates of the first p columns."""
    levels = None if grouping is None else (int(grouping.indices[0]), grouping.coded)
    if isinstance(moments, FactorMoments):  # effects of thousands of levels: two stages only, which need no basis
        return ToResidual(affine, np.empty((p, 0)), np.empty(0))
    scatter = moments.linear.s_aa[0][:p, :p] / moments.linear.weight[0]
    scale = np.sqrt(np.diag(scatter))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(scatter / scale[:, None] / scale) if p else (np.empty(0), np.empty((0, 0)))
    kept = values > ALIASED * max(values[-1], 0.0) if p else np.zeros(0, dtype=bool)
    basis = vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None]
    return ToResidual(affine, basis, (moments.linear.mean_a[0][:p] - affine.origin_a) @ basis, levels)
