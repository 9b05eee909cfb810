"""Metadata that residuals give back: the check of features whose values repeat or whose distribution is skewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import LeakageWarning, warn

__all__ = [
    "LOOKED_AT_ROWS",
    "Leakage",
    "effect_leakage",
    "few_valued",
    "leakage",
    "looked_at",
    "looked_at_features",
    "warn_of_leakage",
]

Array = NDArray[np.float64]

# The check costs three small trees, up to three times: enough rows to see a lattice, few enough not to be felt.
LOOKED_AT_ROWS = 1000
_LOOKED_AT = 256
_SCREENED = 64
_FEATURES = 32
_COLUMNS = 32
# Share of a design column's variance that residuals must give back beyond what the features told or smooth ones would.
_WORTH_TELLING = 0.2
# Bins of a residual that are looked at before any tree is grown, and how much they must tell beyond chance: n times the
# share of variance between them has about _BINS - 1 +- 5 by chance, so 50 is out of its reach in 8000 tries.
_BINS = 16
# A feature is skewed or heavy-tailed if its range is so many times that of its middle half, or lies so much to one side
# of the median. Of 1000 rows, Gaussian ones have about 5 and 0, exponential ones 7 and 5.
_TAILS = 12.0
_SKEW = 3.0
_BEYOND_CHANCE = 50.0
_FEWEST_ROWS = 30
# Trees, of one feature each, that look for effects of a factor without columns.
_TREES = 8


@dataclass(frozen=True)
class Leakage:
    """How well a decision tree reads a design column from residuals, in cross-validation.

    Attributes
    ----------
    column : int
        The design column of which the residuals give back most that the features didn't tell.
    found : float
        Squared correlation of the column with what the tree predicts from the residuals.
    smooth : float
        The same had few-valued features more values, if it is due to these; else from the features before.
    features : ndarray of int
        The features that the tree looked at, those that tell most first.
    few : ndarray of int
        Those of them that are few-valued.
    from_values : bool
        Whether it is due to the values of the few-valued ones; else to the shape of the distributions.
    """

    column: int
    found: float
    smooth: float
    features: NDArray[np.intp]
    few: NDArray[np.intp]
    from_values: bool


def few_valued(X: NDArray[Any], ordered: NDArray[Any] | None = None) -> NDArray[np.intp]:
    """Return the features, fewest values first, in which more than a tenth of the rows repeat a value, or some pile up.

    Rows that are repeated as a whole (weights written out, a bootstrap) count once, unless hardly any is not. Rows pile
    up at a value (zero, a detection limit) that is far more frequent than those around it. Missing values don't count.
    `ordered` are the columns of X sorted, where they are at hand.

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


def _skewed(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which features have a tail that is far from most rows, (d,); ties of the middle half count as one, too."""
    rows = np.sum(~np.isnan(ordered), axis=0)
    low, first, middle, third, high = (
        ordered[np.maximum((rows - 1) * k // 4, 0), np.arange(len(rows))].astype(np.float64) for k in range(5)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        within = third - first
        return ((high - low) > _TAILS * within) | (np.abs(high - 2.0 * middle + low) > _SKEW * within)


def _piles(column: Array) -> Array:
    """Return the values at which rows pile up: in 1 % of them, and five times as many as at the values around."""
    values, counts = np.unique(column, return_counts=True)
    frequent = np.flatnonzero(counts >= max(5, 0.01 * len(column)))
    if len(values) < 10 or len(frequent) == 0 or len(frequent) > 10:
        return np.empty(0)
    around = [np.median(np.r_[counts[max(i - 5, 0) : i], counts[i + 1 : i + 6]]) for i in frequent]
    return np.asarray(values[frequent[counts[frequent] >= 5 * np.array(around)]], dtype=np.float64)


def leakage(X: NDArray[Any], residual: NDArray[Any], design: Array, *, least_squares: bool = True) -> Leakage | None:
    """Find out whether a tree reads from the residuals more of the design than the features told.

    A feature on a lattice (counts, rounded values, codes) that is shifted by an amount which depends on the metadata
    lies on another lattice for each profile: thresholds between them tell the profiles apart, although means agree. The
    same goes for values at which many rows pile up (zeros, a detection limit), and for a skewed distribution, whose
    mean is far from where its rows are many, so that small differences of means move these a lot (Hamdan et al. 2023).

    The check compares a tree on the residuals with one on the features as they were; and, since these may have told
    the design by their means, with one on the residuals that few-valued features would have if each value were spread
    evenly over the gap to its neighbours, and piles over the whole distribution.

    Parameters
    ----------
    X, residual : ndarray (n, d)
        A sample of rows, and their residuals; NaN where a value is missing.
    design : ndarray (n, p)
        Columns that were removed.
    least_squares : bool
        Whether means are gone for certain, so that only few-valued and skewed features need a look.

    Returns
    -------
    Leakage, or None if there is none worth telling.

    References
    ----------
    Hamdan et al., "Confound-leakage: confound removal in machine learning leads to leakage", GigaScience 12 (2023).
    """
    columns, target = _varying(design)
    if len(columns) == 0 or len(X) < _FEWEST_ROWS:
        return None
    few, features = _suspects(X, least_squares)
    if len(features) == 0:
        return None
    shares = _binned_shares(_without_rounding(X[:, features], residual[:, features]), target)
    most = shares.max(axis=1)
    wanted = np.isin(features, few) | (most * len(X) > _BEYOND_CHANCE)
    # half of the places are for few-valued ones, those of fewest values, whatever they tell
    first = np.isin(features, few[: _FEATURES // 2])
    wanted = np.flatnonzero(wanted)[np.lexsort((-most[wanted], ~first[wanted]))][:_FEATURES]
    if len(wanted) == 0:
        return None
    features, shares = features[wanted], shares[wanted]
    best = np.sort(np.argsort(-shares.sum(axis=0), kind="stable")[:_COLUMNS])
    columns, target = columns[best], target[:, best]
    where = np.isin(features, few)
    found, before, smooth = _read_back(X[:, features], residual[:, features], target, where)
    gain = found - np.minimum(before, smooth)
    k = int(np.argmax(gain))
    if gain[k] <= _WORTH_TELLING:
        return None
    from_values = bool(where.any()) and bool(smooth[k] <= before[k] + 0.05)
    features = features[np.argsort(-shares[:, best[k]], kind="stable")]
    mine = features[np.isin(features, few)]
    otherwise = smooth[k] if from_values else before[k]
    return Leakage(int(columns[k]), float(found[k]), float(otherwise), features, mine, from_values)


def effect_leakage(X: NDArray[Any], residual: NDArray[Any], effects: Array) -> Leakage | None:
    """Find out whether a tree reads from a feature's residual more of a factor's effect on it than the feature told.

    A factor of many levels has no columns, and most of its levels have too few rows in a sample to be read one by one.
    What was removed from row i of feature j is the number ``effects[i, j]``, and it stands for the level: where a
    lattice was shifted by less than its step, the residual's distance to the lattice is this number. Where levels have
    few rows, one that lies far out moves the mean of its level, and so the residuals of all others of it, which were
    alike before. Of Gaussian features, residuals and effects are independent, whatever the number of rows.

    Each feature has a tree of its own, since one that reads many features' effects at once finds none of them. It is
    grown for the few features where rows of like residuals have like effects.

    Parameters
    ----------
    X, residual
        As in :func:`leakage`.
    effects : ndarray (n, d)
        What was removed for the factor, of the same rows and features.

    Returns
    -------
    Leakage, or None if there is none worth telling. Its `column` is the feature whose effect is read best, and its
    `features` are all whose effect is, best ones first.
    """
    varying, target = _varying(effects)
    if len(X) < _FEWEST_ROWS:
        return None
    few, features = _suspects(X, True)
    features = np.intersect1d(features, varying)
    if len(features) == 0:
        return None
    target = target[:, np.searchsorted(varying, features)]
    shares = _neighbours_share(_without_rounding(X[:, features], residual[:, features]), target)
    wanted = np.argsort(-shares, kind="stable")[:_TREES]
    wanted = wanted[shares[wanted] > 0.25 * _WORTH_TELLING]
    found = np.zeros((3, len(wanted)))  # with the residual, the feature, and smooth residuals
    for k, w in enumerate(wanted):
        j = features[w]
        found[:, k] = np.ravel(_read_back(X[:, [j]], residual[:, [j]], target[:, [w]], np.isin([j], few)))
    gain = found[0] - found[1:].min(axis=0)
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > _WORTH_TELLING]
    if len(order) == 0:
        return None
    k = order[0]
    told = features[wanted[order]]
    _, before, smooth = found[:, k]
    from_values = bool(told[0] in few) and bool(smooth <= before + 0.05)
    otherwise = smooth if from_values else before
    mine = told[np.isin(told, few)]
    return Leakage(int(told[0]), float(found[0, k]), float(otherwise), told, mine, from_values)


def _varying(design: Array) -> tuple[NDArray[np.intp], Array]:
    """Return which columns vary, and these with mean 0 and variance 1."""
    spread = design.std(axis=0)
    columns = np.flatnonzero(spread > 1e-12 * np.abs(design).max(axis=0, initial=1e-300))
    return columns, (design[:, columns] - design[:, columns].mean(axis=0)) / spread[columns]


def _suspects(X: NDArray[Any], least_squares: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the few-valued features, and all that need a look: where means are gone, these and skewed ones."""
    ordered = np.sort(X, axis=0)
    few = few_valued(X, ordered)
    screened = np.unique(np.linspace(0, X.shape[1] - 1, _SCREENED).astype(np.intp))
    if least_squares:
        screened = screened[_skewed(ordered[:, screened])]
    return few, np.union1d(few[:_FEATURES], screened)


def _read_back(
    X: NDArray[Any], residual: NDArray[Any], target: Array, few: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """Return how well trees predict each target (p,) from residuals, from features, and had `few` ones more values.

    Where residuals tell nothing that is worth it, the others aren't looked at and count as telling as much.
    """
    from sklearn.tree import DecisionTreeRegressor

    X, residual = np.asarray(X, dtype=np.float64), _without_rounding(X, residual)
    tree = DecisionTreeRegressor(min_samples_leaf=max(2, len(X) // 200), random_state=0)
    found = _predicted_share(tree, residual, target)
    if found.max() <= _WORTH_TELLING:
        return found, found, found
    before = smooth = _predicted_share(tree, X, target)
    if few.any():
        spread_out = residual.copy()
        spread_out[:, few] = _spread_out(X[:, few], residual[:, few])
        smooth = _predicted_share(tree, spread_out, target)
    return found, before, smooth


def _without_rounding(X: NDArray[Any], residual: NDArray[Any]) -> Array:
    """Return residuals as multiples of the rounding errors that subtracting left in them."""
    eps = float(np.finfo(residual.dtype).eps)
    largest = np.nanmax(np.abs(X), axis=0, initial=0.0).astype(np.float64)
    grid = 64 * eps * np.where(largest > 0, largest, 1.0)
    return np.round(np.asarray(residual, dtype=np.float64) / grid) * grid


def _binned_shares(residual: Array, target: Array) -> Array:
    """Share of each target's variance (d, p) that lies between bins of equally many rows of each residual."""
    n = len(residual)
    edges = np.linspace(0, n, _BINS + 1).astype(np.intp)[:-1]
    size = np.diff(np.append(edges, n))
    order = np.argsort(residual, axis=0)
    shares = np.empty((residual.shape[1], target.shape[1]))
    for j in range(residual.shape[1]):
        sums = np.add.reduceat(target[order[:, j]], edges, axis=0)
        shares[j] = (sums**2 / size[:, None]).sum(axis=0) / n
    return shares


def _neighbours_share(residual: Array, target: Array) -> Array:
    """Squared correlation of each target (d,) with its mean over the four rows whose residuals lie next to a row's."""
    order = np.argsort(residual, axis=0, kind="stable")
    target = np.take_along_axis(target, order, axis=0)
    near = np.zeros_like(target)
    for step in (1, 2):
        near[step:] += target[:-step]
        near[:-step] += target[step:]
    near -= near.mean(axis=0)
    length = np.linalg.norm(near, axis=0)
    cosine = np.sum(near * target, axis=0) / np.where(length > 0, length, 1.0) / np.sqrt(len(target))
    return np.asarray(np.clip(cosine, 0.0, 1.0) ** 2)


def _spread_out(X: Array, residual: Array) -> Array:
    """Return the residuals that there would be if values didn't repeat.

    A value lies anywhere between the midpoints to its neighbours; rows at a value where they pile up have the residual
    of any other row.
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


def _predicted_share(tree: Any, features: Array, target: Array) -> Array:
    """Squared correlation of each target with its cross-validated prediction, (p,); 0 if that points the wrong way."""
    # Trees see nothing but the order of values, and scikit-learn's see it in single precision; missing ones come last.
    features = np.column_stack([np.unique(column, return_inverse=True)[1] for column in features.T])
    order = np.random.default_rng(0).permutation(len(features))
    predicted = np.empty(target.shape)
    for test in np.array_split(order, 3):
        train = np.setdiff1d(order, test)
        predicted[test] = tree.fit(features[train], target[train]).predict(features[test]).reshape(len(test), -1)
    predicted -= predicted.mean(axis=0)
    length = np.linalg.norm(predicted, axis=0)
    cosine = np.sum(predicted * target, axis=0) / np.where(length > 0, length, 1.0) / np.sqrt(len(target))
    return np.clip(cosine, 0.0, 1.0) ** 2


def looked_at(n_rows: int) -> NDArray[np.intp]:
    """Return the rows that the check is made of, spread evenly."""
    return np.unique(np.linspace(0, n_rows - 1, LOOKED_AT_ROWS).astype(np.intp))


def looked_at_features(n_features: int) -> NDArray[np.intp]:
    """Return the features that the check is made of, spread evenly."""
    return np.unique(np.linspace(0, n_features - 1, _LOOKED_AT).astype(np.intp))


def warn_of_leakage(
    X: NDArray[Any],
    residual: NDArray[Any],
    design: Array,
    columns: Sequence[str],
    features: Sequence[Any],
    *,
    effects: Mapping[str, Array] | None = None,
    least_squares: bool = True,
) -> bool:
    """Warn if a tree reads more of the metadata from residuals than the features told; return whether it does.

    Parameters
    ----------
    X, residual, design
        As in :func:`leakage`; further columns of the design are ignored.
    columns : sequence of str
        Names of the design columns that are removed.
    features : sequence
        Names of the features.
    effects : mapping of str to ndarray (n, d), optional
        By factor without columns, what was removed for it (:func:`effect_leakage`).
    least_squares : bool
        Whether the residuals are those of least squares, so that means are gone for certain.

    Warns
    -----
    LeakageWarning
        With the column or effect that is read best, how well, how well it was or would be otherwise, and what to do.
    """
    found = leakage(X, residual, design[:, : len(columns)], least_squares=least_squares)
    read = "" if found is None else repr(columns[found.column])
    for factor, removed in (effects or {}).items():
        if found is None and (found := effect_leakage(X, residual, removed)) is not None:
            read = f"the effect of {factor!r} on {str(features[found.column])!r}"
    if found is None:
        return False
    which = found.few if found.from_values else found.features
    names = ", ".join(repr(str(features[j])) for j in which[:5]) + (", ..." if len(which) > 5 else "")
    safe = "Linear learners are safe; for trees, forests and neighbours" if least_squares else "Before other learners,"
    if found.from_values:
        kind, otherwise = "few-valued features", "had they more values"
        remedy = "add noise of the size of a step to these features first, or use an Eraser"
    else:
        kind, otherwise = "features", "from the features before"
        remedy = (
            "transform skewed, heavy-tailed or clustered features, whose means lie apart from most rows (logarithms "
            "or ranks), or use an Eraser"
        )
        if not least_squares:
            remedy = f"see whether the estimator fits the metadata's effects at all; {remedy}"
    warn(
        f"residuals of {kind} ({names}) let a decision tree read {read} back: squared correlation "
        f"{found.found:.2f} in cross-validation, and {found.smooth:.2f} {otherwise}. {safe} {remedy}",
        LeakageWarning,
    )
    return True
