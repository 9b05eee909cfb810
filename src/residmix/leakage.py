"""Metadata that residuals give back: the check of residuals of few-valued features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import LeakageWarning
from residmix.sources.rows import Block

__all__ = ["Leakage", "few_valued", "leakage", "looked_at", "warn_of_leakage"]

Array = NDArray[np.float64]

# The check costs three small trees, twice: enough rows to see a lattice, few enough not to be felt.
_ROWS = 1000
_LOOKED_AT = 256
_FEATURES = 32
_COLUMNS = 32
# Share of a design column's variance that the lattice must give back on top of what smooth features would.
_WORTH_TELLING = 0.2


@dataclass(frozen=True)
class Leakage:
    """How well a decision tree reads a design column from residuals, in cross-validation.

    Attributes
    ----------
    column : int
        The design column that is read best.
    found : float
        Squared correlation of the column with what the tree predicts from the residuals.
    smooth : float
        The same, had the features not been few-valued.
    features : ndarray of int
        Which features are.
    """

    column: int
    found: float
    smooth: float
    features: NDArray[np.intp]


def few_valued(X: NDArray[Any]) -> NDArray[np.intp]:
    """Return the features, fewest values first, in which more than a tenth of the rows repeat a value.

    Rows that are repeated as a whole (weights written out, a bootstrap) count once, unless hardly any is not.

    Examples
    --------
    >>> import numpy as np
    >>> few_valued(np.column_stack([np.arange(50) / 7, np.arange(50) % 3])).tolist()
    [1]
    """
    ordered = np.sort(X, axis=0)
    values = 1 + np.sum(ordered[1:] > ordered[:-1], axis=0)
    few = np.flatnonzero((values < 0.9 * len(X)) & (values > 1))
    if len(few) and (distinct := len(np.unique(X, axis=0))) > len(X) / 4:
        few = few[values[few] < 0.9 * distinct]
    return few[np.argsort(values[few], kind="stable")]


def leakage(X: NDArray[Any], residual: NDArray[Any], design: Array) -> Leakage | None:
    """Find out whether a tree reads the design from the residuals of few-valued features.

    A feature on a lattice (counts, rounded values, codes) that is shifted by an amount which depends on the metadata
    lies on another lattice for each profile: thresholds between them tell the profiles apart, although means agree
    (Hamdan et al. 2023). The check compares a tree on the residuals with one on the residuals that these features would
    have if each value were spread evenly over the gap to its neighbours: what is found in the first only is due to
    the lattice.

    Parameters
    ----------
    X, residual : ndarray (n, d)
        A sample of rows, and their residuals.
    design : ndarray (n, p)
        Columns that were removed.

    Returns
    -------
    Leakage, or None if no feature is few-valued.

    References
    ----------
    Hamdan et al., "Confound-leakage: confound removal in machine learning leads to leakage", GigaScience 12 (2023).
    """
    from sklearn.tree import DecisionTreeRegressor

    features = few_valued(X)[:_FEATURES]
    spread = design[:, :_COLUMNS].std(axis=0)
    columns = np.flatnonzero(spread > 1e-12 * np.abs(design[:, :_COLUMNS]).max(axis=0, initial=1e-300))
    if len(features) == 0 or len(columns) == 0 or len(X) < 30:
        return None
    target = (design[:, columns] - design[:, columns].mean(axis=0)) / spread[columns]
    tree = DecisionTreeRegressor(min_samples_leaf=max(2, len(X) // 200), random_state=0)
    on_lattice = np.asarray(residual[:, features], dtype=np.float64)
    found = _predicted_share(tree, on_lattice, target)
    smooth = _predicted_share(tree, on_lattice + _jitter(np.asarray(X[:, features], dtype=np.float64)), target)
    best = int(np.argmax(found - smooth))
    return Leakage(int(columns[best]), float(found[best]), float(smooth[best]), features)


def _jitter(X: Array) -> Array:
    """Draw, for each value, an amount that spreads it evenly between the midpoints to its neighbours."""
    uniform = np.random.default_rng(0).uniform(-0.5, 0.5, X.shape)
    for j, column in enumerate(X.T):
        values, where = np.unique(column, return_inverse=True)
        gap = np.diff(values)
        below, above = np.r_[gap[0], gap][where], np.r_[gap, gap[-1]][where]
        uniform[:, j] *= np.where(uniform[:, j] < 0, below, above)
    return uniform


def _predicted_share(tree: Any, features: Array, target: Array) -> Array:
    """Squared correlation of each target with its cross-validated prediction, (p,); 0 if that points the wrong way."""
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
    return np.unique(np.linspace(0, n_rows - 1, _ROWS).astype(np.intp))


def warn_of_leakage(
    sample: Block,
    remove: Callable[[Block], NDArray[Any]],
    columns: Sequence[str],
    features: Sequence[str],
    *,
    stacklevel: int = 2,
) -> Leakage | None:
    """Warn if a tree reads the metadata from the residuals of a sample of rows because features are few-valued.

    Parameters
    ----------
    sample : Block
        The rows `looked_at`, with the design that was fitted.
    remove : callable
        ``remove(block)`` are the residuals.
    columns : sequence of str
        Names of the design columns that are removed.
    features : sequence of str
        Names of the features.

    Warns
    -----
    LeakageWarning
        With the column that is read best, how well, and how well it would be from features that aren't few-valued.
    """
    if not columns:
        return None
    assert sample.design is not None
    some = np.unique(np.linspace(0, sample.X.shape[1] - 1, _LOOKED_AT).astype(int))
    complete = np.isfinite(sample.X).all(axis=1)
    X = sample.X[complete][:, some]
    if len(few_valued(X)) == 0:
        return None
    found = leakage(X, remove(sample)[complete][:, some], sample.design[complete][:, : len(columns)])
    if found is not None and found.found - found.smooth > _WORTH_TELLING:
        names = ", ".join(repr(str(features[some[j]])) for j in found.features[:5])
        more = "" if len(found.features) <= 5 else ", ..."
        warnings.warn(
            f"residuals of few-valued features ({names}{more}) let a decision tree read {columns[found.column]!r} "
            f"back: squared correlation {found.found:.2f} in cross-validation, and {found.smooth:.2f} had they more "
            "values. Linear learners are safe; for trees, forests and neighbours add noise of the size of a step to "
            "these features first, or use an Eraser",
            LeakageWarning,
            stacklevel=stacklevel,
        )
    return found
