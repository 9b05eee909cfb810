"""Spreads of several factors' levels, whose variance ratios multiply and are pooled together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.pooled.by_level import level_sums, merge_sums
from residmix.effects.pooled.levels import Levels
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.scale import Location
from residmix.moments.by_level import Grouping, level_of, residual_sums
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["MOST_CELLS", "cells_of", "pooled_together"]

Array = NDArray[np.float64]
Beside = list[tuple[Grouping, Array]]
Sums = tuple[Array, Array, Array]

# Combinations of levels whose moments are kept. With more, every sweep reads the rows.
MOST_CELLS = 512
_MAX_SWEEPS = 50


def cells_of(groupings: Sequence[Grouping]) -> Grouping | None:
    """Return the combinations of the factors' levels as levels of one factor; None for more than `MOST_CELLS`.

    Examples
    --------
    >>> one, two = (Grouping(name, slice(k, k + 1), np.array([[0.0], [1.0]])) for k, name in enumerate("ab"))
    >>> cells_of([one, two]).coded.tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if np.prod([float(len(group.coded)) for group in groupings]) > MOST_CELLS:
        return None
    columns = np.concatenate([group.indices for group in groupings])
    coded = np.array([np.concatenate(levels) for levels in product(*(group.coded for group in groupings))])
    return Grouping(" & ".join(group.name for group in groupings), columns, coded.reshape(-1, len(columns)))


def pooled_together(
    found: LinearRemoval,
    moments: Any,
    levels: Sequence[Levels],
    groupings: Sequence[Grouping],
    cells: Grouping | None,
    first: Sequence[tuple[Array, Array]],
    posteriors: Sequence[Callable[[Levels, NDArray[np.bool_]], tuple[Array, Array]]],
    usable: NDArray[np.bool_],
    rows: Rows | None,
) -> list[tuple[Array, Array]]:
    r"""Return the posterior where each factor's variance ratios are those beside the others'.

    In turn, the residuals of each factor's levels are divided by the others' :math:`\delta^*`, until nothing moves. The
    last factor's ratios are normed so that the spread left over all rows is the pooled one. Of few combinations of
    levels, their moments tell all of this; otherwise each turn reads the rows.
    """
    groupings = [replace(group, coded=own.coded) for group, own in zip(groupings, levels, strict=True)]
    sums = _sums(found, moments, groupings, cells, rows)
    posterior, ratios = list(first), [np.ones_like(own.shift) for own in levels]
    for ratio, (_, delta) in zip(ratios, posterior, strict=True):
        ratio[:, usable] = delta
    for _ in range(_MAX_SWEEPS):
        moved = 0.0
        for f, own in enumerate(levels):
            n, _, squares = sums(f, [(groupings[g], ratio) for g, ratio in enumerate(ratios) if g != f])
            pooled = np.sqrt(squares.sum(axis=0) / np.maximum(n.sum(axis=0), 1e-300))
            again = replace(own, squares=squares, pooled=pooled)
            gamma, delta = posteriors[f](again, usable)
            posterior[f] = (gamma * again.pooled[usable] / own.pooled[usable], delta)
            moved = max(moved, float(np.max(np.abs(np.log(delta / ratios[f][:, usable])), initial=0.0)))
            ratios[f][:, usable] = delta
        if moved < 1e-8:
            break
    n, mean, squares = sums(0, list(zip(groupings, ratios, strict=True)))
    left = (
        (squares + n * mean**2).sum(axis=0)
        / np.maximum(n.sum(axis=0), 1e-300)
        / np.where(usable, levels[0].pooled, 1.0) ** 2
    )
    gamma, delta = posterior[-1]
    posterior[-1] = gamma, delta * left[usable]
    return posterior


def _sums(
    found: LinearRemoval, moments: Any, groupings: Sequence[Grouping], cells: Grouping | None, rows: Rows | None
) -> Callable[[int, Beside], Sums]:
    """Return what tells weight, mean and squares of residuals by a factor's levels, divided by others' spreads."""
    if cells is None:
        assert rows is not None, "spreads of so many combinations of levels aren't in the moments"
        whole, location = rows, found.everything()
        return lambda f, beside: fold(whole, partial(_of_rows, location, groupings[f], beside), merge_sums)
    design = np.zeros((len(cells.coded), int(np.max(cells.indices, initial=-1)) + 1))
    design[:, cells.indices] = cells.coded
    own = [level_of(design, group.columns, group.coded) for group in groupings]
    n, mean, squares, _ = residual_sums(moments, cells, found.applied)

    def of_cells(f: int, beside: Beside) -> Sums:
        spread = np.ones_like(mean)
        for other, ratios in beside:
            spread *= ratios[level_of(design, other.columns, other.coded)]
        return _by_level(n, mean / np.sqrt(spread), squares / spread, own[f], len(groupings[f].coded))

    return of_cells


def _by_level(n: Array, mean: Array, squares: Array, own: NDArray[np.intp], size: int) -> Sums:
    """Return the sums of levels (K, d) from those of combinations of levels (C, d), which have levels `own`."""
    member = np.zeros((size, len(own)))
    member[own, np.arange(len(own))] = 1.0
    total = member @ n
    centre = member @ (n * mean) / np.where(total > 0, total, 1.0)
    return total, centre, member @ (squares + n * (mean - centre[own]) ** 2)


def _of_rows(location: Location, grouping: Grouping, beside: Beside, block: Block) -> Sums:
    """Return the sums of a block of rows."""
    e = np.array(location(block), dtype=np.float64)
    for other, ratios in beside:
        e /= np.sqrt(ratios[level_of(block.design, other.columns, other.coded)])
    return level_sums(e, level_of(block.design, grouping.columns, grouping.coded), len(grouping.coded), block.weight)
