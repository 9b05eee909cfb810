"""The leakage check: can a decision tree predict the metadata from residuals?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.removal.lattices import few_valued, skewed, spread_out
from residmix.rows.sampled import evenly

__all__ = ["Leakage", "effect_leakage", "leakage"]

Array = NDArray[np.float64]

_SCREENED = 64
_FEATURES = 32
_COLUMNS = 32
# Share of a design column's variance that residuals must give back beyond what the features told or smooth ones would.
_WORTH_TELLING = 0.2
# Bins of a residual that are looked at before any tree is grown, and how much they must tell beyond chance: n times the
# share of variance between them has about _BINS - 1 +- 5 by chance, so 50 is out of its reach in 8000 tries.
_BINS = 16
_BEYOND_CHANCE = 50.0
_FEWEST_ROWS = 30
# Trees, of one feature each, that look for effects of a factor without columns.
_TREES = 8


@dataclass(frozen=True)
class Leakage:
    """How well a decision tree predicts a design column from residuals, in cross-validation.

    Attributes
    ----------
    column : int
        The design column whose predictability increased most, from features to residuals.
    found : float
        Squared correlation of the column with the tree's predictions from the residuals.
    smooth : float
        For comparison: the same with repeated values spread out if `from_values`, else from the features.
    features : ndarray of int
        The features that the tree used, most predictive first.
    few : ndarray of int
        Those of them that are few-valued.
    from_values : bool
        Whether repeated values cause the leakage; else the shape of the distributions does.
    """

    column: int
    found: float
    smooth: float
    features: NDArray[np.intp]
    few: NDArray[np.intp]
    from_values: bool


def leakage(X: NDArray[Any], residual: NDArray[Any], design: Array, *, least_squares: bool = True) -> Leakage | None:
    """Test whether a tree predicts the design better from the residuals than from the features.

    If a feature has repeated values (counts, rounded values, codes), its residuals have a different set of values for
    each metadata profile. A tree can separate these with thresholds, although the means agree. The same happens with
    piles (zeros, a detection limit), and with skewed distributions, where removing a difference of means moves the bulk
    of the rows (Hamdan et al. 2023).

    The check compares a tree on the residuals with one on the features. Since the means of the features may predict the
    design, it also compares with a tree on residuals whose repeated values are spread evenly over the gaps to their
    neighbours, and piles over the whole distribution.

    Parameters
    ----------
    X, residual : ndarray (n, d)
        A sample of rows, and their residuals; NaN where a value is missing.
    design : ndarray (n, p)
        Columns that were removed.
    least_squares : bool
        Whether means are removed exactly, so that only features with repeated values or skew are checked.

    Returns
    -------
    Leakage, or None if it is small.

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
    """Test whether a tree predicts a factor's effect on a feature better from the residual than from the feature.

    A factor of many levels has no columns, and most of its levels have too few rows in a sample to be predicted one by
    one. So the target is ``effects[i, j]``, the effect removed from row i of feature j, which identifies the level. If
    a feature has repeated values, the offset of its residuals from these values is this effect. If levels have few
    rows, an outlier moves the mean of its level, and so the residuals of the other rows of that level. For Gaussian
    features, residuals and effects are independent whatever the number of rows.

    Each feature has its own tree, fitted only where rows with similar residuals have similar effects.

    Parameters
    ----------
    X, residual
        As in :func:`leakage`.
    effects : ndarray (n, d)
        The effects of the factor that were removed from these rows and features.

    Returns
    -------
    Leakage, or None if it is small. Its `column` is the feature whose effect is predicted best, and its `features` are
    all features with predictable effects, best first.
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
    """Return a mask of the columns that vary, and these columns standardised."""
    spread = design.std(axis=0)
    columns = np.flatnonzero(spread > 1e-12 * np.abs(design).max(axis=0, initial=1e-300))
    return columns, (design[:, columns] - design[:, columns].mean(axis=0)) / spread[columns]


def _suspects(X: NDArray[Any], least_squares: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the features with repeated values, and all features to check: with exact means, these and skewed ones."""
    ordered = np.sort(X, axis=0)
    few = few_valued(X, ordered)
    screened = evenly(X.shape[1], _SCREENED)
    if least_squares:
        screened = screened[skewed(ordered[:, screened])]
    return few, np.union1d(few[:_FEATURES], screened)


def _read_back(
    X: NDArray[Any], residual: NDArray[Any], target: Array, few: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """Return the scores (p,) of trees on residuals, on features, and on residuals with the values of `few` spread out.

    If the residuals don't predict a target, the other two aren't computed and count as equal.
    """
    from sklearn.tree import DecisionTreeRegressor

    X, residual = np.asarray(X, dtype=np.float64), _without_rounding(X, residual)
    tree = DecisionTreeRegressor(min_samples_leaf=max(2, len(X) // 200), random_state=0)
    found = _predicted_share(tree, residual, target)
    if found.max() <= _WORTH_TELLING:
        return found, found, found
    before = smooth = _predicted_share(tree, X, target)
    if few.any():
        unlike = residual.copy()
        unlike[:, few] = spread_out(X[:, few], residual[:, few])
        smooth = _predicted_share(tree, unlike, target)
    return found, before, smooth


def _without_rounding(X: NDArray[Any], residual: NDArray[Any]) -> Array:
    """Return residuals as multiples of the rounding errors that subtracting left in them."""
    eps = float(np.finfo(residual.dtype).eps)
    largest = np.nanmax(np.abs(X), axis=0, initial=0.0).astype(np.float64)
    grid = 64 * eps * np.where(largest > 0, largest, 1.0)
    return np.round(np.asarray(residual, dtype=np.float64) / grid) * grid


def _binned_shares(residual: Array, target: Array) -> Array:
    """Share of each target's variance (d, p) that lies between equally filled bins of each residual."""
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
    """Squared correlation of each target (d,) with its mean over the four rows with the nearest residuals."""
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


def _predicted_share(tree: Any, features: Array, target: Array) -> Array:
    """Squared correlation of each target with its cross-validated prediction, (p,); 0 if it is negative."""
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
    squared: NDArray[np.float64] = np.clip(cosine, 0.0, 1.0) ** 2
    return squared
