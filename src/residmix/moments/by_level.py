"""Moments of all rows, and of the rows of each level of some factors, for effects on the spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.moments.equations import Dense
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments, linear_moments, made_of_numbers, merge_moments
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["MOST_FEATURES", "ByLevel", "Grouping", "LevelMoments", "level_of", "residual_sums"]

Array = NDArray[np.float64]

# Products of so many features with each other, at each level, are kept: two megabytes a level.
MOST_FEATURES = 512

# A spread of a few units in the last place of the mean is none.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)

# Share of the sums of squares below which their difference is none.
_LEFT = 64 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Grouping:
    """A factor with columns in the design, by whose levels rows are grouped.

    Attributes
    ----------
    name : str
    columns : slice or ndarray of int (w,)
        Its columns in the design.
    coded : ndarray (K, w)
        Its levels in them.
    """

    name: str
    columns: slice | NDArray[np.intp]
    coded: Array

    @property
    def indices(self) -> NDArray[np.intp]:
        """Its columns, one by one."""
        if isinstance(self.columns, slice):
            return np.arange(self.columns.start, self.columns.stop)
        return self.columns

    def others(self, width: int) -> NDArray[np.intp]:
        """Return the other columns of a design of so many."""
        return np.setdiff1d(np.arange(width), self.indices)


@dataclass
class LevelMoments:
    """Moments of all rows and, by factor and level, of the features with all columns but the factor's own.

    Attributes
    ----------
    linear : LinearMoments
    levels : dict of str to list of LinearMoments
    scatter : dict of str to list of ndarray (d, d) or None
        Products of the features with each other about their means at a level, of the factors that `ByLevel.scatter_of`
        names; None without rows.
    """

    linear: LinearMoments
    levels: dict[str, list[LinearMoments]]
    scatter: dict[str, list[Array | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class ByLevel(Dense):
    """Normal equations with a column for every effect, whose moments are kept by level as well.

    Attributes
    ----------
    groupings : tuple of Grouping
    scatter_of : tuple of str
        Factors at whose levels products of the features with each other are kept too, if these are no more than
        `MOST_FEATURES`.
    """

    groupings: tuple[Grouping, ...] = ()
    scatter_of: tuple[str, ...] = ()

    def moments(self, rows: Rows) -> LevelMoments:
        kept = self.scatter_of if rows.n_features <= MOST_FEATURES else ()
        if kept:
            rows = rows.with_block_rows(self._larger(rows))
        return fold(rows, partial(_moments, self.groupings, kept), _merge, lambda found: made_of_numbers(found.linear))

    def merge(self, one: LevelMoments, two: LevelMoments) -> LevelMoments:
        return _merge(one, two)

    def _larger(self, rows: Rows) -> int:
        """Return rows in a block that are about as many numbers as the products by level, which each block has."""
        levels = sum(len(group.coded) for group in self.groupings if group.name in self.scatter_of)
        return max(rows.block_rows, min(8192, 1 << int(np.log2(max(1, levels * rows.n_features)))))


def level_of(design: Array, columns: slice | NDArray[np.intp], coded: Array) -> NDArray[np.intp]:
    """Return which of the levels, coded as the rows of `coded` (K, w) in some columns, each design row has, (b,)."""
    own = design[:, columns]
    distance = np.sum(coded**2, axis=1) - 2 * own @ coded.T
    return np.asarray(distance.argmin(axis=1))


def residual_sums(
    moments: LevelMoments, grouping: Grouping, fit: LinearFit
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    r"""Return weight, mean and squares of the residuals by level, and where a feature has one value; (K, d) each.

    With B the coefficients of the columns a' that aren't the factor's own, the residuals of a level have the squares
    :math:`S_{xx} - 2 B'S_{a'x} + B'S_{a'a'}B` about their mean.
    """
    width, d = fit.coef.shape
    others = grouping.others(width)
    n, mean, squares = np.zeros((3, len(grouping.coded), d))
    still = np.zeros(n.shape, dtype=bool)
    B, own = fit.coef[others], fit.coef[grouping.columns]
    for k, level in enumerate(moments.levels[grouping.name]):
        n[k] = level.weight
        step_a = (level.origin_a - fit.origin_a[others]) + level.offset_a  # (g, q')
        effect = np.einsum("gq,qd->gd", step_a, B)
        effect = effect[0] if len(effect) == 1 else np.einsum("dd->d", effect)
        at = (grouping.coded[k] - fit.origin_a[grouping.columns]) @ own
        mean[k] = (level.origin_x - fit.origin_x) + level.offset_x - fit.constant - effect - at
        spread = level.s_aa[0] @ B if len(level.s_aa) == 1 else np.einsum("dqr,rd->qd", level.s_aa, B)
        squares[k] = level.s_xx + np.einsum("qd,qd->d", B, spread - 2.0 * level.s_ax)
        still[k] = (level.count >= 2) & (level.s_xx <= _ROUNDING**2 * level.weight * level.mean_x**2)
        # where the others' effects fit a level exactly, what is left is rounding of the sums
        squares[k][squares[k] <= _LEFT * (level.s_xx + np.einsum("qd,qd->d", B, spread))] = 0.0
    mean[n == 0] = 0.0
    varies = moments.linear.s_xx > _ROUNDING**2 * moments.linear.weight * moments.linear.mean_x**2
    return n, mean, squares, still & varies


def _moments(groupings: Sequence[Grouping], scatter_of: tuple[str, ...], block: Block) -> LevelMoments:
    levels: dict[str, list[LinearMoments]] = {}
    scatter: dict[str, list[Array | None]] = {name: [] for name in scatter_of}
    for grouping in groupings:
        own = level_of(block.design, grouping.columns, grouping.coded)
        others = grouping.others(block.design.shape[1])
        parts = []
        for k in range(len(grouping.coded)):
            part = block.select(np.flatnonzero(own == k))
            part = replace(part, design=np.ascontiguousarray(part.design[:, others]), codes=())
            parts.append(linear_moments(part) if part.n_rows else _nothing(len(others), block.X.shape[1]))
            if grouping.name in scatter:
                scatter[grouping.name].append(_products(part, parts[-1]) if part.n_rows else None)
        levels[grouping.name] = parts
    return LevelMoments(linear_moments(block), levels, scatter)


def _products(part: Block, moments: LinearMoments) -> Array:
    """Return the products (d, d) of features about their means; not numbers where values are missing."""
    x = np.asarray(part.X, dtype=np.float64) - moments.origin_x
    x -= moments.offset_x
    weighted = x if part.weight is None else x * part.weight[:, None]
    return np.asarray(weighted.T @ x)


def _nothing(q: int, d: int) -> LinearMoments:
    one, a, x = np.zeros(1), np.zeros(q), np.zeros(d)
    return LinearMoments(one, one, a, a[None], x, x, np.zeros((1, q, q)), np.zeros((q, d)), x)


def _merge(one: LevelMoments, two: LevelMoments) -> LevelMoments:
    levels = {
        name: [_added(a, b) for a, b in zip(parts, two.levels[name], strict=True)] for name, parts in one.levels.items()
    }
    scatter = {
        name: [
            _added_products(*pair, *of)
            for pair, *of in zip(
                zip(parts, two.scatter[name], strict=True), one.levels[name], two.levels[name], strict=True
            )
        ]
        for name, parts in one.scatter.items()
    }
    return LevelMoments(merge_moments(one.linear, two.linear), levels, scatter)


def _added_products(one: Array | None, two: Array | None, of_one: LinearMoments, of_two: LinearMoments) -> Array | None:
    if one is None or two is None:
        return two if one is None else one
    step = (of_two.origin_x - of_one.origin_x) + (of_two.offset_x - of_one.offset_x)
    weight = of_one.weight.max() + of_two.weight.max()
    share = of_one.weight.max() * of_two.weight.max() / weight if weight > 0 else 0.0
    added = np.outer(share * step, step)
    added += one
    added += two
    return added


def _added(one: LinearMoments, two: LinearMoments) -> LinearMoments:
    """Merge; a level without rows so far has no origin near them."""
    if not one.weight.any() and one.count.max() == 0:
        return two
    return one if not two.weight.any() and two.count.max() == 0 else merge_moments(one, two)
