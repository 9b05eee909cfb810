"""Moments of the rows of each level of a factor, as one stack of arrays, and those of all rows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable_weight
from residmix.kernels.pairs import level_products
from residmix.moments.linear import LinearMoments, merge_moments
from residmix.rows.block import Block

__all__ = ["Stacked", "stacked", "stacked_moments"]

Array = NDArray[np.float64]

# Rows whose mean is an origin.
_FEW = 16

_NAMES = tuple(own.name for own in fields(LinearMoments))


@dataclass(frozen=True)
class Stacked(Sequence[LinearMoments]):
    """Moments of levels without missing values: each array of `whole` has the levels as a further axis in front."""

    whole: LinearMoments

    def __len__(self) -> int:
        return len(self.whole.weight)

    @overload
    def __getitem__(self, k: int) -> LinearMoments: ...

    @overload
    def __getitem__(self, k: slice) -> Sequence[LinearMoments]: ...

    def __getitem__(self, k: int | slice) -> LinearMoments | Sequence[LinearMoments]:
        part = LinearMoments(*(getattr(self.whole, name)[k] for name in _NAMES))
        return Stacked(part) if isinstance(k, slice) else part

    def __iter__(self) -> Iterator[LinearMoments]:
        return map(self.__getitem__, range(len(self)))

    def merged(self, other: Stacked) -> Stacked:
        """Return the moments of the rows of both, level by level."""
        # a level without rows so far has no origin near them
        one = _beside(self.whole, other.whole)
        return Stacked(merge_moments(one, _beside(other.whole, one)))

    def all_rows(self, own: NDArray[np.intp], coded: Array) -> LinearMoments:
        """Return the moments of all rows and columns; there must be any.

        Parameters
        ----------
        own : ndarray of int (w,)
            Columns of the factor, which are among all columns; the others are those of these moments, in order.
        coded : ndarray (K, w)
            Its levels in them.
        """
        parts = self.whole
        q, share = parts.origin_a.shape[1] + len(own), parts.weight[:, 0] / parts.weight.sum()
        others = np.setdiff1d(np.arange(q), own)
        origins = np.empty((len(coded), q))
        origins[:, own], origins[:, others] = coded, parts.origin_a
        origin_a, origin_x = share @ origins, share @ parts.origin_x
        a, x = origins - origin_a, (parts.origin_x - origin_x) + parts.offset_x
        a[:, others] += parts.offset_a[:, 0]
        offset_a, offset_x = share @ a, share @ x
        a -= offset_a
        x -= offset_x
        weighted = a * parts.weight
        s_aa, s_ax = weighted.T @ a, weighted.T @ x
        s_aa[np.ix_(others, others)] += parts.s_aa[:, 0].sum(axis=0)
        s_ax[others] += parts.s_ax.sum(axis=0)
        s_xx = parts.s_xx.sum(axis=0) + np.einsum("kd,kd->d", parts.weight * x, x)
        count, weight = parts.count.sum(axis=0), parts.weight.sum(axis=0)
        return LinearMoments(count, weight, origin_a, offset_a[None], origin_x, offset_x, s_aa[None], s_ax, s_xx)


def _beside(one: LinearMoments, two: LinearMoments) -> LinearMoments:
    """Return moments with the origins of `two` at the levels that have no weight in `one`."""
    none = one.weight == 0
    if not none.any():
        return one
    return replace(
        one,
        origin_x=np.where(none, two.origin_x, one.origin_x),
        origin_a=np.where(none, two.origin_a, one.origin_a),
    )


def stacked(levels: Sequence[LinearMoments]) -> Stacked | None:
    """Return the moments of levels as one stack; None where values are missing."""
    if isinstance(levels, Stacked):
        return levels
    if any(level.weight.shape != (1,) for level in levels):
        return None
    return Stacked(LinearMoments(*(np.stack([getattr(own, name) for own in levels]) for name in _NAMES)))


def stacked_moments(block: Block, own: NDArray[np.intp], size: int, *, plain: bool = False) -> Stacked:
    """Return the moments of a block by level, of which there are `size`; where values are missing, no numbers.

    `plain` is of `residmix.kernels.pairs.small`.
    """
    w, n = readable_weight(block.weight), np.bincount(own, minlength=size).astype(np.float64)
    count, total = (np.asarray(np.bincount(own, u, size), float) if w.size else n for u in (w > 0, w))
    # few bits are sorted by counting
    order = np.argsort(own.astype(np.uint16) if size <= 1 << 16 else own, kind="stable")
    starts = np.concatenate([[0], np.cumsum(n)]).astype(np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        origin_x, origin_a = _origins(block, own, order, total)
        given = block.X, block.design, order, starts, origin_x, origin_a, w
        sum_x, sum_a, aa, ax, squares = level_products(*given, plain=plain)
        weight = total[:, None]
        offset_a, offset_x = (sums / np.where(weight > 0, weight, 1.0) for sums in (sum_a, sum_x))
        moved = offset_a * weight
        return Stacked(
            LinearMoments(
                count=count[:, None],
                weight=weight,
                origin_a=origin_a,
                offset_a=offset_a[:, None],
                origin_x=origin_x,
                offset_x=offset_x,
                s_aa=(aa - moved[:, :, None] * offset_a[:, None, :])[:, None],
                s_ax=ax - moved[:, :, None] * offset_x[:, None, :],
                s_xx=np.maximum(squares - weight * offset_x**2, 0.0),
            )
        )


def _origins(block: Block, own: NDArray[np.intp], order: NDArray[np.intp], total: Array) -> tuple[Array, Array]:
    """Return points amid the rows of each level, (K, d) and (K, q): means of a few; 0 where there are no rows."""
    if block.weight is not None:  # see `residmix.moments.linear.block_origins`
        order = order[(block.weight[order] > 0) | (total[own[order]] == 0)]
    levels = own[order]
    n = np.bincount(levels, minlength=len(total))
    place = np.arange(len(order)) - (np.cumsum(n) - n)[levels]
    taken = place % np.maximum(1, -(-n // _FEW))[levels] == 0
    rows, levels = order[taken], levels[taken]
    n = np.bincount(levels, minlength=len(total))
    present = n > 0
    first = (np.cumsum(n) - n)[present]
    origins = tuple(np.zeros((len(total), values.shape[1])) for values in (block.X, block.design))
    for origin, values in zip(origins, (block.X, block.design), strict=True):
        if len(rows):
            sums = np.add.reduceat(values.take(rows, axis=0), first, axis=0, dtype=np.float64)
            origin[present] = sums / n[present, None]
    return origins[0], origins[1]
