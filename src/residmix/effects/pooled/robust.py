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

__all__ = ["robust_sums"]

Array = NDArray[np.float64]
Location = Callable[[Block], Array]

# Of the median absolute deviation: what makes it a standard deviation of normal rows.
_NORMAL = 1.482602218505602
# Values held at a time.
_VALUES = 4_194_304


def robust_sums(rows: Rows, location: Location, grouping: Grouping) -> tuple[Array, Array, Array]:
    r"""Return weight, median and :math:`(n - 1) (1.4826\,\mathrm{MAD})^2` of residuals by level, (K, d) each.

    Weights other than 0 count as 1. Rows are read once for each group of features that fits into memory.
    """
    d, K = rows.n_features, len(grouping.coded)
    n, middle, squares = np.zeros((3, K, d))
    step = max(1, _VALUES // max(rows.n_rows, 1))
    for start in range(0, d, step):
        some = slice(start, min(start + step, d))
        parts = fold(rows, partial(_residuals, location, grouping, some), _join)
        values, own = (np.concatenate(both) for both in zip(*parts, strict=True))
        for k in range(K):
            mine = values[own == k]
            have = np.count_nonzero(~np.isnan(mine), axis=0)
            n[k, some] = have
            known = have > 0
            if known.any():
                centre = np.nanmedian(mine[:, known], axis=0)
                spread = _NORMAL * np.nanmedian(np.abs(mine[:, known] - centre), axis=0)
                middle[k, some][known] = centre
                squares[k, some][known] = np.maximum(have[known] - 1, 0) * spread**2
    return n, middle, squares


def _residuals(
    location: Location, grouping: Grouping, some: slice, block: Block
) -> list[tuple[Array, NDArray[np.intp]]]:
    kept = block if block.weight is None else block.select(np.flatnonzero(block.weight))
    exact = replace(kept, X=np.asarray(kept.X, dtype=np.float64))
    return [
        (
            location(exact)[:, some].copy(),
            np.asarray(level_of(kept.design, grouping.columns, grouping.coded), dtype=np.intp),
        )
    ]


def _join(
    one: list[tuple[Array, NDArray[np.intp]]], two: list[tuple[Array, NDArray[np.intp]]]
) -> list[tuple[Array, NDArray[np.intp]]]:
    return one + two
