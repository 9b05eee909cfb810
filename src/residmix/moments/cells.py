"""Numbers of rows of each level and pair of levels, since sums of few rows can reveal single rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from residmix.moments.linear import LinearMoments

__all__ = ["Cell", "LevelsOf", "smallest_cell"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LevelsOf:
    """A factor: its columns in the design, its levels in them (L, w), and their names."""

    name: str
    columns: slice
    coded: Array
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A level, a pair of levels of two factors, or all rows, and the rows that have it."""

    name: str
    rows: int


def smallest_cell(moments: LinearMoments, factors: Sequence[LevelsOf]) -> Cell:
    """Return the cell with the fewest rows, among those with any.

    Pairs of levels are checked too, since their counts are among the products of design columns. With weights, sums of
    weights are counted.
    """
    g = int(np.argmax(moments.weight))
    mean, weight = moments.mean_a[g], float(moments.weight[g])
    joint = np.zeros((len(mean) + 1, len(mean) + 1))
    joint[0, 0] = weight
    joint[0, 1:] = joint[1:, 0] = weight * mean
    joint[1:, 1:] = moments.s_aa[g] + weight * np.outer(mean, mean)
    turns = [_indicators(factor, len(mean)) for factor in factors]
    found = [("all rows", weight)]
    for factor, turn in zip(factors, turns, strict=True):
        counts = turn @ joint[0]
        found += [(f"{factor.name}={label}", count) for label, count in zip(factor.labels, counts, strict=True)]
    for (one, a), (two, b) in combinations(zip(factors, turns, strict=True), 2):
        counts = a @ joint @ b.T
        found += [
            (f"{one.name}={first}, {two.name}={second}", counts[i, j])
            for i, first in enumerate(one.labels)
            for j, second in enumerate(two.labels)
        ]
    name, rows = min(((name, count) for name, count in found if count > 0.5), key=lambda own: own[1])
    return Cell(name, round(rows))


def _indicators(factor: LevelsOf, width: int) -> Array:
    """Return the rows (L, 1 + q) that turn [1, a] into indicators of the levels."""
    solved = np.linalg.pinv(np.column_stack([np.ones(len(factor.coded)), factor.coded]))  # (1 + w, L)
    out = np.zeros((len(factor.coded), 1 + width))
    out[:, 0], out[:, 1 + factor.columns.start : 1 + factor.columns.stop] = solved[0], solved[1:].T
    return out
