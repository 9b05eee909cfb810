"""Features with repeated values (counts, codes, rounded numbers)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["counts", "few_valued", "raw_counts", "skewed", "spread_out"]

Array = NDArray[np.float64]

# A feature is skewed or heavy-tailed if its range is so many times that of its middle half, or lies so much to one side
# of the median. Of 1000 rows, Gaussian ones have about 5 and 0, exponential ones 7 and 5.
_TAILS = 12.0
_SKEW = 3.0
# How many times their mean raw counts vary at least, and of how many features that is asked.
WIDER = 1.5
FEWEST = 5


def few_valued(X: NDArray[Any], ordered: NDArray[Any] | None = None) -> NDArray[np.intp]:
    """Return the features with repeated values (more than a tenth of the rows) or piles, fewest values first.

    Repeated rows (as in a bootstrap) count once, unless nearly all rows are repeated. A pile is a value (zero, a
    detection limit) that is far more frequent than the values around it. Missing values don't count. `ordered` are the
    columns of X sorted, where they are at hand.

    Examples
    --------
    >>> import numpy as np
    >>> few_valued(np.column_stack([np.arange(50) / 7, np.arange(50) % 3])).tolist()
    [1]
    """
    ordered = np.sort(X, axis=0) if ordered is None else ordered
    rows = np.sum(~np.isnan(X), axis=0)
    values = np.minimum(rows, 1) + np.sum(ordered[1:] > ordered[:-1], axis=0)
    repeated = np.flatnonzero((values < 0.9 * rows) & (values > 1))
    piled = [j for j in np.flatnonzero((values < 0.99 * rows) & (values > 1)) if len(_piles(ordered[: rows[j], j]))]
    if len(repeated) and (distinct := len(np.unique(np.nan_to_num(X), axis=0))) > len(X) / 4:
        repeated = repeated[values[repeated] < 0.9 * np.minimum(distinct, rows[repeated])]
    few = np.union1d(repeated, np.array(piled, dtype=np.intp))
    return few[np.argsort(values[few], kind="stable")]


def counts(X: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which features are counts: more than two distinct whole numbers from 0, ignoring NaN.

    Examples
    --------
    >>> counts(np.array([[0.0, 1.0, 0.5], [7.0, 0.0, 1.0], [3.0, 1.0, np.nan]])).tolist()
    [True, False, False]
    """
    found = np.flatnonzero(_whole(X[:1]))  # nearly always none: then that's all
    found = found[_whole(X[:, found])]
    several = [len(np.unique(column[~np.isnan(column)])) > 2 for column in X[:, found].T]
    mask = np.zeros(X.shape[1], dtype=bool)
    mask[found] = several
    return mask


def _whole(X: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which features have whole numbers from 0 only, ignoring NaN."""
    return np.asarray(np.all(np.isnan(X) | ((X >= 0) & (np.floor(X) == X)), axis=0))


def raw_counts(X: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which features are counts as sequencers make them; none unless most features are.

    Such counts are whole numbers of which some are 0, and vary more than their mean, as Poisson counts with unequal
    rates do. Answers on a scale vary less, and weights, lengths and ages in whole units are never 0.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> genes = rng.negative_binomial(0.5, 0.1, size=(100, 6))
    >>> bool(raw_counts(genes).all()), bool(raw_counts(rng.integers(0, 5, size=(100, 6))).any())
    (True, False)
    """
    X = np.asarray(X, dtype=np.float64)
    found = counts(X)
    with np.errstate(all="ignore"):
        mean = np.nanmean(X[:, found], axis=0)
        found[found] = (np.nanvar(X[:, found], axis=0) > WIDER * mean) & (np.nanmin(X[:, found], axis=0) == 0)
    some = len(found) >= FEWEST and found.mean() > 0.5
    return found if some else np.zeros(len(found), dtype=bool)


def skewed(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of the features that are skewed or have tied quartiles, (d,)."""
    rows = np.sum(~np.isnan(ordered), axis=0)
    low, first, middle, third, high = (
        ordered[np.maximum((rows - 1) * k // 4, 0), np.arange(len(rows))].astype(np.float64) for k in range(5)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        within = third - first
        far: NDArray[np.bool_] = ((high - low) > _TAILS * within) | (np.abs(high - 2.0 * middle + low) > _SKEW * within)
    return far


def _piles(column: Array) -> Array:
    """Return the values of piles: those of at least 1 % of the rows, five times as frequent as their neighbours."""
    values, counts = np.unique(column, return_counts=True)
    frequent = np.flatnonzero(counts >= max(5, 0.01 * len(column)))
    if len(values) < 10 or len(frequent) == 0 or len(frequent) > 10:
        return np.empty(0)
    around = [np.median(np.r_[counts[max(i - 5, 0) : i], counts[i + 1 : i + 6]]) for i in frequent]
    return np.asarray(values[frequent[counts[frequent] >= 5 * np.array(around)]], dtype=np.float64)


def spread_out(X: Array, residual: Array) -> Array:
    """Return the residuals with repeated values spread out evenly.

    A value is moved at random between the midpoints to its neighbours; rows of a pile get the residual of a random row.
    """
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-0.5, 0.5, X.shape)
    out = residual.copy()
    for j, column in enumerate(X.T):
        have = np.flatnonzero(~np.isnan(column))
        values, where = np.unique(column[have], return_inverse=True)
        gap = np.diff(values)
        below, above = np.r_[gap[0], gap][where], np.r_[gap, gap[-1]][where]
        out[have, j] += uniform[have, j] * np.where(uniform[have, j] < 0, below, above)
        piled = np.isin(column, _piles(column[have]))
        others = np.flatnonzero(~piled & ~np.isnan(column))
        if len(others):
            out[piled, j] = out[rng.choice(others, piled.sum()), j]
    return out
