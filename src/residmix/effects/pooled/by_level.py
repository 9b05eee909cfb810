"""Sums by level of a factor that has columns, and features that don't vary within a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.errors import DesignWarning, warn
from residmix.moments.by_level import level_of
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = [
    "Still",
    "level_ranges",
    "level_sums",
    "merge_ranges",
    "merge_sums",
    "still_levels",
    "tell_still",
]

Array = NDArray[np.float64]


def level_sums(values: Array, own: NDArray[np.intp], size: int, weight: Array | None) -> tuple[Array, Array, Array]:
    """Return weight and mean of some values (b, d) by level, and sum of squares about it, (K, d) each; NaN is no value.

    Changes `values`.
    """
    member = np.zeros((len(values), size))
    member[np.arange(len(member)), own] = 1.0 if weight is None else weight
    missing = np.isnan(values) if np.isnan(values.sum()) else None
    if missing is None:
        n = np.repeat(member.sum(axis=0)[:, None], values.shape[1], axis=1)
    else:
        values[missing] = 0.0
        n = member.T @ (~missing).astype(np.float64)
    mean = member.T @ values / np.where(n > 0, n, 1.0)
    values -= mean[own]
    if missing is not None:
        values[missing] = 0.0
    np.square(values, out=values)
    return n, mean, member.T @ values


def merge_sums(one: tuple[Array, ...], two: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Return the same of the rows of both, by Chan's formula."""
    n = one[0] + two[0]
    share = two[0] / np.where(n > 0, n, 1.0)
    step = two[1] - one[1]
    return n, one[1] + share * step, one[2] + two[2] + one[0] * share * step**2


def level_ranges(X: NDArray[Any], own: NDArray[np.intp], size: int, weight: Array | None) -> tuple[Array, ...]:
    """Return how many values each level has, the least and the greatest, (K, d) each; rows of weight 0 have none."""
    if weight is not None and not weight.all():
        X, own = X[weight > 0], own[weight > 0]
    count, low, high = np.zeros((3, size, X.shape[1]))
    low, high = low + np.inf, high - np.inf
    order = np.argsort(own, kind="stable")
    present, start = np.unique(own[order], return_index=True)
    if len(present):
        ordered = np.asarray(X[order], dtype=np.float64)
        count[present] = np.add.reduceat((~np.isnan(ordered)).astype(np.float64), start, axis=0)
        low[present] = np.nan_to_num(np.fmin.reduceat(ordered, start, axis=0), nan=np.inf, neginf=-np.inf)
        high[present] = np.nan_to_num(np.fmax.reduceat(ordered, start, axis=0), nan=-np.inf, posinf=np.inf)
    return count, low, high


def merge_ranges(one: tuple[Array, ...], two: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the same of the rows of both."""
    return one[0] + two[0], np.minimum(one[1], two[1]), np.maximum(one[2], two[2])


@dataclass(frozen=True)
class Still:
    """Levels of a factor at which features are constant, so that their spread can't be adjusted.

    Attributes
    ----------
    columns : slice
        Of the factor in the design.
    coded : ndarray (K, w)
        Its levels in them.
    mask : ndarray of bool (K, d)
        Features that are constant there, over two or more rows.
    """

    columns: slice
    coded: Array
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, term: Term, coded: Array, ranges: tuple[Array, ...]) -> Still:
        """Return these levels from the ranges by level. Features that are constant over all rows don't count."""
        count, low, high = ranges
        varies = low.min(axis=0) < high.max(axis=0)
        return cls(term.columns, coded, (count >= 2) & (low == high) & varies)

    def at(self, design: Array) -> NDArray[np.bool_]:
        """Return a mask (b, d) of the values of some rows that are at such levels."""
        return np.asarray(self.mask[level_of(design, self.columns, self.coded)])

    def select(self, features: NDArray[np.integer[Any]]) -> Still:
        """Return the same for a selection of the features."""
        return replace(self, mask=self.mask[:, features])


def still_levels(rows: Rows, design: Design) -> dict[str, Still]:
    """Return, in one pass over rows, the levels of the removed factors at which features are constant, by term."""
    factors = [term for term in design.terms if term.kind == "factor" and not term.preserved]
    if not factors:
        return {}
    coded = [design.level_rows(term) for term in factors]
    step = partial(_ranges, [term.columns for term in factors], coded)
    found = fold(rows, step, _merge_several)
    return {
        term.name: still
        for term, levels, ranges in zip(factors, coded, found, strict=True)
        if (still := Still.of(term, levels, ranges)).mask.any()
    }


def _ranges(columns: list[slice], coded: list[Array], block: Block) -> list[tuple[Array, ...]]:
    return [
        level_ranges(block.X, level_of(block.design, at, levels), len(levels), block.weight)
        for at, levels in zip(columns, coded, strict=True)
    ]


def _merge_several(one: list[tuple[Array, ...]], two: list[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    return [merge_ranges(a, b) for a, b in zip(one, two, strict=True)]


def tell_still(found: dict[str, Still], design: Design, features: Sequence[Any], what: str) -> None:
    """Warn of features that are constant within a level, by name; `what` says how they are treated."""
    pairs = [
        (str(features[j]), f"{name}={level}")
        for name, still in found.items()
        for term in design.terms
        if term.name == name
        for level, own in zip(term.levels, still.mask, strict=True)
        for j in np.flatnonzero(own).tolist()
    ]
    if pairs:
        count = len({feature for feature, _ in pairs})
        some = ", ".join(f"{feature!r} at {level}" for feature, level in pairs[:5]) + (", ..." if pairs[5:] else "")
        warn(
            f"{count} of {len(features)} features are constant within a level ({some}): {what}",
            DesignWarning,
            kind="constant-in-level",
            features=list(dict.fromkeys(feature for feature, _ in pairs)),
            levels=list(dict.fromkeys(level for _, level in pairs)),
        )
