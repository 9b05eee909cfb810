"""Medians by level in place of means, and median absolute deviations in place of variances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.moments.by_level import Grouping, level_of
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["robust_sums", "weighted_median"]

Array = NDArray[np.float64]
Location = Callable[[Block], Array]
_Part = tuple[Array, NDArray[np.intp], Array]

# Of the median absolute deviation: what makes it a standard deviation of normal rows.
_NORMAL = 1.482602218505602
# Weights on both sides that differ by no more than this are the same.
_SAME = 1e-12
# Values held at a time.
_VALUES = 4_194_304


def robust_sums(rows: Rows, location: Location, grouping: Grouping) -> tuple[Array, Array, Array]:
    r"""Return weight, median and :math:`(n - 1) (1.4826\,\mathrm{MAD})^2` of residuals by level, (K, d) each.

    A row of weight 2 counts as two rows. Rows are read once for each group of features that fits into memory.
    """
    d, K = rows.n_features, len(grouping.coded)
    n, middle, squares = np.zeros((3, K, d))
    step = max(1, _VALUES // max(rows.n_rows, 1))
    for start in range(0, d, step):
        some = slice(start, min(start + step, d))
        parts = fold(rows, partial(_residuals, location, grouping, some), _join)
        values, own, weight = (np.concatenate(each) for each in zip(*parts, strict=True))
        for k in range(K):
            mine, counts = values[own == k], weight[own == k]
            have = counts @ ~np.isnan(mine)
            n[k, some] = have
            known = have > 0
            if known.any():
                centre = weighted_median(mine[:, known], counts)
                spread = _NORMAL * weighted_median(np.abs(mine[:, known] - centre), counts)
                middle[k, some][known] = centre
                squares[k, some][known] = np.maximum(have[known] - 1, 0) * spread**2
    return n, middle, squares


def weighted_median(values: Array, weight: Array) -> Array:
    """Return the medians (d,) of columns (n, d) in which each row counts with its weight; NaN is no value.

    Halfway between two values if exactly half of the weight lies on each side, as for an even number of rows.

    Examples
    --------
    >>> weighted_median(np.array([[1.0], [2.0], [10.0]]), np.array([1.0, 1.0, 2.0])).tolist()
    [6.0]
    """
    if np.all(weight == 1.0):
        return np.asarray(np.nanmedian(values, axis=0))
    order = np.argsort(values, axis=0)  # NaN comes last
    ordered = np.take_along_axis(values, order, axis=0)
    below = np.cumsum(np.where(np.isnan(ordered), 0.0, weight[order]), axis=0)
    half = 0.5 * below[-1]
    ends = [np.argmax(below >= half * (1.0 - _SAME), axis=0), np.argmax(below > half * (1.0 + _SAME), axis=0)]
    columns = np.arange(values.shape[1])
    return np.asarray(0.5 * (ordered[ends[0], columns] + ordered[ends[1], columns]))


def _residuals(location: Location, grouping: Grouping, some: slice, block: Block) -> list[_Part]:
    kept = block if block.weight is None else block.select(np.flatnonzero(block.weight))
    exact = replace(kept, X=np.asarray(kept.X, dtype=np.float64))
    return [
        (
            location(exact)[:, some].copy(),
            np.asarray(level_of(kept.design, grouping.columns, grouping.coded), dtype=np.intp),
            np.ones(kept.n_rows) if kept.weight is None else np.asarray(kept.weight, dtype=np.float64),
        )
    ]


def _join(one: list[_Part], two: list[_Part]) -> list[_Part]:
    return one + two
