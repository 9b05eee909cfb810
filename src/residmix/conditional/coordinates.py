"""The coordinates that a mixture given metadata is fitted in: least-squares residuals, orthonormal design rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.moments.absorbed.sums import FactorMoments
from residmix.moments.affine import Affine
from residmix.moments.by_level import Grouping, level_of
from residmix.moments.linear import Moments
from residmix.moments.scatter import Scatter
from residmix.rows.block import Block
from residmix.rows.scratch import scratch

__all__ = ["ToResidual", "Widths", "independent", "to_residual", "with_gate_columns"]

Floats = NDArray[np.float64]

# Directions of the design whose variance is below this share of the largest are aliased.
ALIASED = 1e-12


@dataclass(frozen=True)
class Widths:
    """Of a design row u, how many of the first columns the weights depend on, and how many of the last have effects.

    Columns between are of both; where gate and effects have the same terms, all are.
    """

    gate: int
    effects: int

    def of_gate(self, u: Floats) -> Floats:
        """Return the columns (..., gate) that the weights depend on."""
        return u[..., : self.gate]

    def of_effects(self, u: Floats) -> Floats:
        """Return the columns (..., effects) that have effects."""
        return u[..., u.shape[-1] - self.effects :]


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
    split : tuple of int or None
        Which columns of u gate and effects have, see `Widths`; None for all. Columns of the one are orthonormal, and
        those of the other.
    """

    affine: Affine
    basis: Floats
    offset: Floats
    levels: tuple[int, Floats] | None = None
    split: tuple[int, int] | None = None

    @property
    def widths(self) -> Widths:
        return Widths(*self.split) if self.split else Widths(self.basis.shape[1], self.basis.shape[1])

    @property
    def effects_basis(self) -> Floats:
        """The columns of `basis` whose u have effects, (p, r)."""
        return self.widths.of_effects(self.basis)

    @property
    def effects_offset(self) -> Floats:
        return self.widths.of_effects(self.offset)

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
    basis = _orthonormal(moments.linear.s_aa[0][:p, :p] / moments.linear.weight[0])
    return ToResidual(affine, basis, (moments.linear.mean_a[0][:p] - affine.origin_a) @ basis, levels)


def _orthonormal(scatter: Floats, left: Floats | None = None) -> Floats:
    """Return the matrix (p, r) that makes columns of a covariance orthonormal, aliased directions left out.

    With `left`, it is for what is left of the columns, of that covariance, and `scatter` says what rounding errors are.
    """
    if not len(scatter):
        return np.empty((0, 0))
    scale = np.sqrt(np.diag(scatter))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh((scatter if left is None else left) / scale[:, None] / scale)
    kept = values > ALIASED * max(values[-1] if left is None else 1.0, 0.0)
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None])


def independent(covariance: Floats) -> int:
    """Return how many directions columns of a covariance have."""
    return int(_orthonormal(covariance).shape[1])


def with_gate_columns(
    own: ToResidual, seen: Scatter, effects: NDArray[np.bool_], gate: NDArray[np.bool_]
) -> ToResidual:
    r"""Return the map where gate and effects have different columns of the design.

    Columns u are, in this order, those of the gate alone, those of both, and those of the effects alone; the first and
    the last are less what the second explain, :math:`a - S_{ab} S_{bb}^{-1} b`, so that columns of the gate are
    orthonormal and those of the effects as well.

    Parameters
    ----------
    own : ToResidual
        For the columns of the effects.
    seen : Scatter
        Of the whole design, the effects' columns first.
    effects, gate : ndarray of bool (p,)
        Which columns each has.
    """
    p, old = len(effects), own.affine
    covariance, mean = seen.scatter[:p, :p] / seen.weight, seen.mean[:p]
    both = np.flatnonzero(effects & gate)
    common = np.zeros((p, 0))
    if len(both):
        found = _orthonormal(covariance[np.ix_(both, both)])
        common = np.zeros((p, found.shape[1]))
        common[both] = found

    def beside(columns: NDArray[np.intp]) -> Floats:
        across = covariance[columns] @ common
        whole = covariance[np.ix_(columns, columns)]
        left = _orthonormal(whole, whole - across @ across.T)
        basis = -common @ (across.T @ left)
        basis[columns] += left
        return basis

    parts = [beside(np.flatnonzero(gate & ~effects)), common, beside(np.flatnonzero(effects & ~gate))]
    basis, (first, shared, last) = np.hstack(parts), (part.shape[1] for part in parts)
    more = p - len(old.coef)
    affine = replace(
        old,
        origin_a=np.append(old.origin_a, mean[p - more :]),
        coef=np.vstack([old.coef, np.zeros((more, old.coef.shape[1]))]),
    )
    split = first + shared, shared + last
    return ToResidual(affine, basis, (mean - affine.origin_a) @ basis, own.levels, split)
