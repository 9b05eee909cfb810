"""Aliased levels of absorbed factors, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from residmix.design.terms import Factor
from residmix.moments.absorbed.sums import FactorMoments
from residmix.moments.solving.solve import LinearFit

__all__ = ["nested_factors", "owners"]

# Names that a message gives of some levels, and parts that it describes.
_NAMED = 4
_PARTS = 3
# Within levels, a column that varies by less than this share of its variance doesn't vary.
_CONSTANT = 1e-11


def nested_factors(fit: LinearFit, moments: Any, factors: Sequence[Factor]) -> list[str]:
    """Return a sentence for each factor with levels that are aliased with other factors.

    The pairs of levels that occur together are the edges of a graph. The mean of each connected component can be
    attributed to either factor. If every component has a single level of one factor, the other factor is nested in it
    (subjects in sites); else the data fall into disconnected blocks.
    """
    told = []
    for f, lost in (fit.nested or {}).items():
        found = [(_parts(moments, f, g), g) for g in range(len(factors)) if g != f]
        (n_parts, own, theirs), g = max(found, key=lambda item: item[0][0])
        name, other = factors[f].name, factors[g].name
        if n_parts == 1:
            others = " and ".join(repr(factor.name) for factor in factors if factor is not factors[f])
            told.append(
                f"{_levels(factors[f], lost)} determined by {others} together: residuals aren't affected, but these "
                "effects can't be separated"
            )
            continue
        more = len(lost) - (n_parts - 1)
        rest = f"; {more} more levels of {name!r} are determined by all factors together" if more > 0 else ""
        if np.bincount(own[own >= 0]).max() == 1:
            told.append(
                f"{_levels(factors[f], lost[: n_parts - 1])} determined by {other!r}, each level of which occurs "
                f"with one level of {name!r} only (nested){rest}: residuals aren't affected, but effects of {name!r} "
                f"can't be separated from those of {other!r}"
            )
        elif np.bincount(theirs[theirs >= 0]).max() == 1:
            told.append(
                f"{n_parts - 1} levels of {other!r} are determined by {name!r}, each level of which occurs with one "
                f"level of {other!r} only (nested; {_pair(factors[f], own, factors[g], theirs)}){rest}: residuals "
                f"aren't affected, but effects of {other!r} can't be separated from those of {name!r}"
            )
        else:
            told.append(
                f"{name!r} and {other!r} fall into {n_parts} disconnected parts: "
                f"{_blocks(factors[f], own, factors[g], theirs)}{rest}. Residuals aren't affected, but effects in "
                "different parts can't be compared"
            )
    return told


def owners(fit: LinearFit, moments: Any, factors: Sequence[Factor]) -> dict[int, str]:
    """Return, for each aliased dense column, the factors that determine it: each alone, or all together."""
    if not factors:
        return {}
    linear = moments.linear
    everything = "the levels of " + " and ".join(repr(factor.name) for factor in factors) + " and other columns"
    told = {}
    for k in fit.aliased:
        alone = []
        # with missing features, sums by level and the scatter are over different rows
        for factor, sums, size in zip(factors, moments.sums, moments.sizes, strict=True):
            if len(linear.weight) > 1:
                break
            whole = sums.spread(size)
            have = whole.weight > 0
            between = whole.a[have, k] - whole.weight[have] * linear.offset_a[0, k]
            within = linear.s_aa[0, k, k] - np.sum(between**2 / whole.weight[have])
            if within <= _CONSTANT * linear.s_aa[0, k, k]:
                alone.append(f"the levels of {factor.name!r}")
        told[k] = " and by ".join(alone) or everything
    return told


def _parts(moments: FactorMoments, f: int, g: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return how many parts the graph of two factors has, and the part of each level; -1 for levels without rows."""
    table = moments.cells[f"{f}:{g}"].matrix() if f < g else moments.cells[f"{g}:{f}"].matrix().T.tocsr()
    _, label = connected_components(sparse.block_array([[None, table], [table.T, None]]), directed=False)
    own, theirs = label[: table.shape[0]].astype(np.int64), label[table.shape[0] :].astype(np.int64)
    own[np.asarray(table.sum(axis=1)).ravel() == 0] = -1
    theirs[np.asarray(table.sum(axis=0)).ravel() == 0] = -1
    return len(np.unique(own[own >= 0])), own, theirs


def _few(names: Sequence[str], most: int = _NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _levels(factor: Factor, which: Sequence[int]) -> str:
    """Return "2 levels of 'site' ('a', 'b') are"."""
    many = "levels of {} ({}) are" if len(which) > 1 else "level of {} ({}) is"
    return f"{len(which)} " + many.format(repr(factor.name), _few([factor.levels[i] for i in which]))


def _pair(one: Factor, own: NDArray[np.int64], two: Factor, theirs: NDArray[np.int64]) -> str:
    """Return "'s01', 's02' and 8 more lie in 'a'" for the first part."""
    part = theirs[theirs >= 0][0]
    inside = [one.levels[i] for i in np.flatnonzero(own == part)]
    return f"{_few(inside)} occur with {two.levels[int(np.argmax(theirs == part))]!r}"


def _blocks(one: Factor, own: NDArray[np.int64], two: Factor, theirs: NDArray[np.int64]) -> str:
    """Describe the smaller parts, all but the largest one."""
    parts, sizes = np.unique(np.r_[own[own >= 0], theirs[theirs >= 0]], return_counts=True)
    smaller = parts[np.argsort(sizes, kind="stable")][:-1]
    told = [
        f"{_few([one.levels[i] for i in np.flatnonzero(own == part)])} of {one.name!r} only occur with "
        f"{_few([two.levels[i] for i in np.flatnonzero(theirs == part)])} of {two.name!r}"
        for part in smaller[:_PARTS]
    ]
    return "; ".join(told) + (f"; and {len(smaller) - _PARTS} more parts" if len(smaller) > _PARTS else "")
