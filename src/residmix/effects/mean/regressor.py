"""Metadata effects by any scikit-learn regressor, partialled out as in double machine learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils import get_tags
from sklearn.utils.validation import has_fit_parameter

from residmix.design.design import Design
from residmix.rows.block import Block
from residmix.rows.folds import cross_fitted
from residmix.rows.rows import Rows

__all__ = ["Nuisance", "Regressor", "RegressorRemoval", "fit_nuisance"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Nuisance:
    r"""Residual :math:`x - \hat g(a(m))`, or its inverse.

    Attributes
    ----------
    estimator : fitted regressor
        Predicts the features (n, d) from the removed design columns.
    n_removed : int
    sign : {-1, 1}
    """

    estimator: Any
    n_removed: int
    sign: int = -1

    def __call__(self, block: Block) -> NDArray[Any]:
        fitted = _predict(self.estimator, block.design[:, : self.n_removed], block.X.shape[1])
        return (block.X + self.sign * fitted).astype(block.X.dtype, copy=False)


@dataclass(frozen=True)
class RegressorRemoval:
    """What a regressor found.

    Attributes
    ----------
    nuisance : Nuisance
        Fitted on all rows, for new ones.
    preserved_coef : ndarray (k, d)
    r2 : ndarray (d,)
        Share of the variance that the cross-fitted predictions explain.
    """

    nuisance: Nuisance
    preserved_coef: Array
    r2: Array

    needs_preserved: ClassVar[bool] = False

    def remover(self, sign: int = -1, *, new: Mapping[str, Any] | None = None, shrink: bool = False) -> Nuisance:
        """Return the function of blocks that removes the effects, or with sign 1 adds them back."""
        return replace(self.nuisance, sign=sign)


@dataclass(frozen=True)
class Regressor:
    """Predict the features from the design by a scikit-learn regressor.

    Attributes
    ----------
    estimator : regressor
        Cloned, never changed.
    cv : int or splitter
    """

    estimator: Any
    cv: Any = field(default=5)

    exact_loo: ClassVar[bool] = False
    # it wants to see columns, whatever their number
    columns_up_to: ClassVar[int] = 20_000

    def check(self, design: Design) -> None:
        """Accept every design."""

    def merges(self, design: Design) -> bool:
        return False

    def fit(self, rows: Rows, design: Design) -> tuple[RegressorRemoval, NDArray[Any]]:
        """Return what was found, and the cross-fitted residuals of the rows."""
        nuisance, coef, residual, r2 = fit_nuisance(self.estimator, rows, design.n_removed, design.n_preserved, self.cv)
        return RegressorRemoval(nuisance, coef, r2), residual


def fit_nuisance(
    estimator: Any, rows: Rows, n_removed: int, n_preserved: int, cv: Any
) -> tuple[Nuisance, Array, NDArray[Any], Array]:
    r"""Fit g in :math:`x = g(a) + p'B + e`, and the cross-fitted residuals of the training rows.

    Without preserved columns p, g is the regression of x on a. With them it is that of :math:`x - (p - \bar p)'B`,
    where B is the regression of :math:`x - \hat E[x \mid a]` on :math:`p - \hat E[p \mid a]`, both cross-fitted
    (Robinson 1988).

    Parameters
    ----------
    estimator : regressor
        Cloned, never changed.
    rows : Rows
        With the design, preserved columns last. Gathered into one array.
    cv : int or splitter
        For cross-fitting.

    Returns
    -------
    nuisance : Nuisance
        Fitted on all rows, for new ones.
    preserved_coef : ndarray (n_preserved, d)
    residual : ndarray (n, d)
        Of each row, from a fit without it.
    r2 : ndarray (d,)
        Share of each feature's variance that these fits explain, preserved columns included; negative where the
        prediction is worse than the mean.

    References
    ----------
    Chernozhukov et al., "Double/debiased machine learning", Econometrics Journal 21 (2018).
    Robinson, "Root-n-consistent semiparametric regression", Econometrica 56 (1988).
    """
    whole = rows.take(np.arange(rows.n_rows))
    X, weight = whole.X.astype(np.float64), whole.weight
    a, p = whole.design[:, :n_removed], whole.design[:, n_removed:]
    if whole.codes:
        raise ValueError(
            "estimator= needs a column per level, but a factor has too many levels; merge its levels, "
            "or leave estimator= out"
        )
    _refuse_gaps(X)
    coef: Array = np.zeros((n_preserved, X.shape[1]))
    if n_preserved:
        both = _cross_residual(estimator, a, np.hstack([X, p]), weight, cv)
        root = np.ones((len(X), 1)) if weight is None else np.sqrt(weight)[:, None]
        coef = np.asarray(np.linalg.lstsq(root * both[:, X.shape[1] :], root * both[:, : X.shape[1]], rcond=None)[0])
        kept = (p - np.average(p, axis=0, weights=weight)) @ coef
    else:
        kept = np.zeros_like(X)
    target = X - kept
    own = _cross_residual(estimator, a, target, weight, cv)
    total = np.average((X - np.average(X, axis=0, weights=weight)) ** 2, axis=0, weights=weight)
    r2 = 1.0 - np.average(own**2, axis=0, weights=weight) / np.where(total > 0, total, 1.0)
    nuisance = Nuisance(_fitted(estimator, a, target, weight), n_removed)
    return nuisance, coef, (kept + own).astype(whole.X.dtype, copy=False), np.where(total > 0, r2, 0.0)


def _refuse_gaps(X: Array) -> None:
    missing = np.isnan(X)
    if missing.any():
        row, feature = np.argwhere(missing)[0]
        raise ValueError(
            f"X contains NaN (row {row}, feature {feature}), which estimator= doesn't allow; fill it, or use "
            "estimator=None"
        )


def _cross_residual(estimator: Any, a: Array, target: Array, weight: Array | None, cv: Any) -> Array:
    def fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> Array:
        fitted = _fitted(estimator, a[train], target[train], None if weight is None else weight[train])
        return target[test] - _predict(fitted, a[test], target.shape[1])

    return cross_fitted(fold, cv, len(a))


def _fitted(estimator: Any, a: Array, target: Array, weight: Array | None) -> Any:
    """Fit a clone to targets (n, d), one regressor each if it takes only one."""
    from sklearn.multioutput import MultiOutputRegressor  # with which half of scikit-learn is imported

    single = clone(estimator)
    several = target.shape[1] > 1 and not get_tags(single).target_tags.multi_output
    model = MultiOutputRegressor(single) if several else single
    if weight is None:
        return model.fit(a, target if target.shape[1] > 1 else target[:, 0])
    if not has_fit_parameter(single, "sample_weight"):
        raise ValueError(
            f"{type(single).__name__}.fit takes no sample_weight; leave the weights out or use another estimator"
        )
    return model.fit(a, target if target.shape[1] > 1 else target[:, 0], sample_weight=weight)


def _predict(fitted: Any, a: Array, d: int) -> Array:
    return np.asarray(fitted.predict(a), dtype=np.float64).reshape(len(a), d)
