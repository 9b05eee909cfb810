"""Moments of all rows, and of the rows of each level of some factors, for effects on the spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import small
from residmix.moments.equations import Dense
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments, linear_moments, made_of_numbers, merge_moments
from residmix.moments.stacked import Stacked, stacked, stacked_moments
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["MOST_FEATURES", "ByLevel", "Grouping", "LevelMoments", "level_of", "residual_sums"]

Array = NDArray[np.float64]

# Products of so many features with each other, at each level, are kept: two megabytes a level.
MOST_FEATURES = 512

# Of products of columns and features at several levels, so many are worked on at once: 8 megabytes.
_NUMBERS = 1 << 20

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
    levels : dict of str to sequence of LinearMoments
    scatter : dict of str to list of ndarray (d, d) or None
        Products of the features with each other about their means at a level, of the factors that `ByLevel.scatter_of`
        names; None without rows.
    """

    linear: LinearMoments
    levels: dict[str, Sequence[LinearMoments]]
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
        step = partial(_moments, self.groupings, kept, small(rows.n_rows, rows.n_features))
        found = fold(rows, step, _merge, lambda found: made_of_numbers(found.linear))
        return replace(found, levels={name: list(parts) for name, parts in found.levels.items()})

    def merge(self, one: LevelMoments, two: LevelMoments) -> LevelMoments:
        return _merge(one, two)

    def _larger(self, rows: Rows) -> int:
        """Return rows in a block that are about as many numbers as the products by level, which each block has."""
        levels = sum(len(group.coded) for group in self.groupings if group.name in self.scatter_of)
        return max(rows.block_rows, min(8192, 1 << int(np.log2(max(1, levels * rows.n_features)))))


def level_of(design: Array, columns: slice | NDArray[np.intp], coded: Array) -> NDArray[np.intp]:
    """Return which of the levels, coded as the rows of `coded` (K, w) in some columns, each design row has, (b,)."""
    own = design[:, columns]
    found = _looked_up(own, coded)
    return _nearest(own, coded) if found is None else found


def _looked_up(own: Array, coded: Array) -> NDArray[np.intp] | None:
    """Return which row of `coded` (K, w) each row of `own` (b, w) is; None unless each is one."""
    if not len(coded):
        return None
    # a number for each level: that of the same row differs by rounding at most
    turn = np.cos(np.arange(1.0, coded.shape[1] + 1.0))
    keys = coded @ turn
    order = np.argsort(keys)
    between = 0.5 * (keys[order[1:]] + keys[order[:-1]])
    found = order[np.searchsorted(between, own @ turn)]
    return found if np.array_equal(coded[found], own) else None


def _nearest(own: Array, coded: Array) -> NDArray[np.intp]:
    distance = np.sum(coded**2, axis=1) - 2 * own @ coded.T
    return np.asarray(distance.argmin(axis=1))


def residual_sums(
    moments: LevelMoments, grouping: Grouping, fit: LinearFit
) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    r"""Return weight, mean and squares of the residuals by level, and where a feature has one value; (K, d) each.

    With B the coefficients of the columns a' that aren't the factor's own, the residuals of a level have the squares
    :math:`S_{xx} - 2 B'S_{a'x} + B'S_{a'a'}B` about their mean.
    """
    levels, found = moments.levels[grouping.name], []
    step = max(1, _NUMBERS // max(1, fit.coef.size))
    for first in range(0, len(levels), step):
        some, coded = levels[first : first + step], grouping.coded[first : first + step]
        if (stack := stacked(some)) is not None:
            found.append(_residual_sums(stack.whole, grouping, coded, fit))
            continue
        for level, code in zip(some, coded, strict=True):
            found.append(tuple(part[None] for part in _residual_sums(level, grouping, code, fit)))
    n, mean, squares, still = (np.concatenate(parts) for parts in zip(*found, strict=True))
    mean[n == 0] = 0.0
    varies = moments.linear.s_xx > _ROUNDING**2 * moments.linear.weight * moments.linear.mean_x**2
    return n, mean, squares, still & varies


def _residual_sums(level: LinearMoments, grouping: Grouping, coded: Array, fit: LinearFit) -> tuple[NDArray[Any], ...]:
    """Return the sums of a level that is coded as (w,), or of a stack of levels (K, w)."""
    others = grouping.others(len(fit.coef))
    B, own = fit.coef[others], fit.coef[grouping.columns]
    step_a = (level.origin_a - fit.origin_a[others])[..., None, :] + level.offset_a  # (g, q')
    if level.s_aa.shape[-3] == 1:
        effect, spread = step_a[..., 0, :] @ B, level.s_aa[..., 0, :, :] @ B
    else:
        effect, spread = np.einsum("...dq,qd->...d", step_a, B), np.einsum("...dqr,rd->...qd", level.s_aa, B)
    at = (coded - fit.origin_a[grouping.columns]) @ own
    mean = (level.origin_x - fit.origin_x) + level.offset_x - fit.constant - effect - at
    squares: Array = level.s_xx + np.einsum("qd,...qd->...d", B, spread - 2.0 * level.s_ax)
    still = (level.count >= 2) & (level.s_xx <= _ROUNDING**2 * level.weight * level.mean_x**2)
    # where the others' effects fit a level exactly, what is left is rounding of the sums
    squares[squares <= _LEFT * (level.s_xx + np.einsum("qd,...qd->...d", B, spread))] = 0.0
    return np.broadcast_to(level.weight, squares.shape), mean, squares, still


def _moments(groupings: Sequence[Grouping], scatter_of: tuple[str, ...], plain: bool, block: Block) -> LevelMoments:
    levels: dict[str, Sequence[LinearMoments]] = {}
    scatter: dict[str, list[Array | None]] = {}
    linear = None
    for grouping in groupings:
        size, columns = len(grouping.coded), block.design[:, grouping.columns]
        found = _looked_up(columns, grouping.coded)
        own = _nearest(columns, grouping.coded) if found is None else found
        others = grouping.others(block.design.shape[1])
        apart = replace(block, design=np.ascontiguousarray(block.design[:, others]), codes=())
        # levels without rows here cost as much as others in a stack, so there should be few
        here = np.flatnonzero(np.bincount(own, minlength=size))
        here = here if 2 * len(here) < size else np.arange(size)
        place = own if len(here) == size else np.searchsorted(here, own)
        stack = stacked_moments(apart, place, len(here), plain=plain)
        sound: NDArray[np.bool_] = np.asarray(np.isfinite(stack.whole.s_xx).all(axis=1))
        parts: Sequence[LinearMoments] = stack
        if not sound.all():
            each = zip(here.tolist(), sound, stack, strict=True)
            parts = [level if good else linear_moments(_part(apart, own, k), plain=plain) for k, good, level in each]
        elif linear is None and found is not None and stack.whole.weight.any():
            linear = stack.all_rows(grouping.indices, grouping.coded[here])
        if len(here) < size:
            nothing = _nothing(len(others), block.X.shape[1])
            by_level = dict(zip(here.tolist(), parts, strict=True))
            parts = [by_level.get(k, nothing) for k in range(size)]
        levels[grouping.name] = parts
        if grouping.name in scatter_of:
            own_rows = (_part(apart, own, k) for k in range(size))
            scatter[grouping.name] = [
                _products(rows, level) if rows.n_rows else None for rows, level in zip(own_rows, parts, strict=True)
            ]
    return LevelMoments(linear_moments(block, plain=plain) if linear is None else linear, levels, scatter)


def _part(block: Block, own: NDArray[np.intp], k: int) -> Block:
    """Return the rows of level k."""
    return block.select(np.flatnonzero(own == k))


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
    levels = {name: _added_levels(parts, two.levels[name]) for name, parts in one.levels.items()}
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


def _added_levels(one: Sequence[LinearMoments], two: Sequence[LinearMoments]) -> Sequence[LinearMoments]:
    if isinstance(one, Stacked) and isinstance(two, Stacked):
        return one.merged(two)
    return [_added(a, b) for a, b in zip(one, two, strict=True)]


def _added(one: LinearMoments, two: LinearMoments) -> LinearMoments:
    """Merge; a level without rows so far has no origin near them."""
    if not one.weight.any() and one.count.max() == 0:
        return two
    return one if not two.weight.any() and two.count.max() == 0 else merge_moments(one, two)
