"""Held-out residuals of training rows: each from a fit without that row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from residmix.effects.removal import LinearRemoval
from residmix.errors import RareLevelWarning, did_you_mean, warn
from residmix.moments.affine import Affine
from residmix.rows.block import Block
from residmix.rows.folds import cross_fitted, splits
from residmix.sources.open import as_table

__all__ = ["LeaveOneOut", "group_column", "leave_one_out", "refitted_by_fold"]

Array = NDArray[np.float64]

# Of a row with a leverage this close to 1, nothing is left after its own fit: the rounding of 1 - h.
_ALONE = 1e-9


@dataclass(frozen=True)
class LeaveOneOut:
    r"""Residual of each training row by the fit of all other rows, without refitting.

    With :math:`a` the centred design row, :math:`C = (A'WA + P)^{-1}` and the leverage
    :math:`h_i = w_i (1/W + a_i' C a_i)`, leaving row i out changes the coefficients by
    :math:`-C a_i w_i e_i / (1 - h_i)`, and so

    .. math:: r_{(i)} = \frac{e_i}{1 - h_i}

    if all effects are removed; the code also handles preserved ones. In-sample residuals have the variance
    :math:`\sigma^2 (1 - h_i)`, those of new rows about :math:`\sigma^2 (1 + h_i)`; these have :math:`\sigma^2 / (1 -
    h_i)`, which is nearly that of new rows.

    Attributes
    ----------
    affine : Affine
        Removes all effects, including the preserved ones.
    preserved : ndarray (k, d)
        Coefficients of the preserved columns.
    inverse : ndarray (g, q, q)
        C, for each group of features that share their rows.
    mean : ndarray (g, q)
        Mean of the design less ``affine.origin_a``.
    group : ndarray of int (d,)
    weight : ndarray (d,)
        Sum of weights W.

    References
    ----------
    Cook and Weisberg, "Residuals and influence in regression", 1982, section 2.2.
    """

    affine: Affine
    preserved: Array
    inverse: Array
    mean: Array
    group: NDArray[np.int64]
    weight: Array

    def __call__(self, block: Block) -> NDArray[Any]:
        """Return the residuals (b, d) in the dtype of X.

        Raises
        ------
        ValueError
            If a row is the only one from which some effect can be estimated, so that a fit without it is impossible.
        """
        if block.codes:
            raise ValueError(
                "residuals='loo' needs a column per level, but a factor has too many levels; use "
                "residuals='cross-fitted'"
            )
        raw = np.asarray(self.affine(Block(block.start, block.X.astype(np.float64), block.design)))
        own = np.ones(len(raw)) if block.weight is None else block.weight
        out = np.empty_like(raw)
        for g in range(len(self.inverse)):
            features = np.flatnonzero(self.group == g)
            total = float(self.weight[features[0]])
            if total == 0.0:  # features without a single value
                out[:, features] = raw[:, features]
                continue
            out[:, features] = self._of_group(g, block, own, total, raw[:, features], self.preserved[:, features])
        return out.astype(block.X.dtype, copy=False)

    def _of_group(self, g: int, block: Block, own: Array, total: float, e: Array, preserved: Array) -> Array:
        a = block.design - self.affine.origin_a - self.mean[g]
        solved = a @ self.inverse[g]
        free = 1.0 - own * (1.0 / total + np.sum(solved * a, axis=1))
        # A missing value is NaN already and asks for no residual.
        alone = (free < _ALONE) & np.isfinite(e).any(axis=1)
        if alone.any():
            rows = block.start + np.flatnonzero(alone)
            raise ValueError(
                f"{alone.sum()} rows (the first is row {rows[0]}) have no leave-one-out residual: some effect "
                "depends on that row alone (leverage 1), as in a level with one row; merge rare levels, set alpha, "
                "or use residuals='cross-fitted'"
            )
        k = len(preserved)
        # The residual keeps preserved effects about their mean, which moves as well when the row is left out.
        centre = a.copy()
        centre[:, a.shape[1] - k :] *= -(own / np.maximum(total - own, 1e-300))[:, None]
        pull = own * (1.0 / total + np.sum(solved * centre, axis=1)) / np.maximum(free, _ALONE)
        kept = (a - centre)[:, a.shape[1] - k :] @ preserved if k else 0.0
        return np.asarray(e * (1.0 + pull[:, None]) + kept)


def leave_one_out(found: LinearRemoval, penalty: Array | None = None) -> LeaveOneOut:
    """Return the map from training blocks to their leave-one-out residuals.

    Parameters
    ----------
    found : LinearRemoval
        By least squares with a column for every effect, or with a penalty.
    penalty : ndarray (q, q), optional
        The penalty of the fit, which is the same when a row is left out.

    Raises
    ------
    ValueError
        If a preserved interaction holds a removed term: what they share depends on all rows.
    """
    if found.shared is not None:
        raise ValueError(
            "residuals='loo' doesn't work with a preserved interaction that holds a removed term; use "
            "residuals='cross-fitted'"
        )
    fit, moments = found.fit, found.moments.linear
    inverse = fit.covariance
    if penalty is not None:
        # The covariance of penalised coefficients is another matrix than the one that leverages need.
        several = len(moments.s_aa) > 1
        scatters = [moments.s_aa[np.argmax(fit.group == g) if several else 0] for g in range(len(fit.covariance))]
        inverse = np.array([np.linalg.pinv(scatter + penalty, rcond=1e-13, hermitian=True) for scatter in scatters])
    return LeaveOneOut(found.everything(), found.preserved_coef, inverse, fit.offset_a, fit.group, fit.weight)


def take_rows(data: Any, rows: NDArray[np.intp]) -> Any:
    """Return some rows of an array, a list or a data frame; None stays None.

    Raises
    ------
    TypeError
        For data that aren't in memory.
    """
    if data is None:
        return None
    if isinstance(data, list | tuple) or hasattr(data, "__array_interface__"):
        return np.asarray(data)[rows]
    frame = nw.from_native(data, eager_only=True, allow_series=True, pass_through=True)
    if frame is data:
        raise TypeError(
            f"cross-fitting needs rows in memory, not in a {type(data).__name__}; load them, or use residuals='loo', "
            "which reads them in one pass"
        )
    return frame[rows].to_native()


def group_column(table: Any, name: str | None) -> NDArray[Any] | None:
    """Return the group of each row from a metadata column, (n,); None without a name.

    Raises
    ------
    ValueError
        If there is no such column, or values are missing.
    """
    if name is None:
        return None
    if name not in table.metadata_columns:
        known = list(map(str, table.metadata_columns))
        raise ValueError(
            f"groups={name!r} is not a metadata column{did_you_mean(name, known)}; there are: "
            f"{', '.join(map(repr, known[:12]))}"
        )
    pieces = [nw.from_native(chunk, eager_only=True)[name] for chunk in table.chunks((name,))]
    values = np.concatenate([piece.to_numpy() for piece in pieces])
    lacking = sum(int(piece.is_null().sum()) for piece in pieces)
    if lacking:
        raise ValueError(f"groups={name!r} has {lacking} missing values, so these rows have no group; fill them")
    return values


def refitted_by_fold(
    residualizer: Any, X: Any, metadata: Any, weight: Any, n_rows: int, groups: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return residuals (n, d) of every row by a clone of `residualizer` that was fitted on the other folds.

    A level that occurs in one fold only is unknown to the fit of the other folds. Its rows get the effect that
    ``on_unknown`` asks for; with "error", they get the average effect and a warning.

    Warns
    -----
    RareLevelWarning
        With ``on_unknown="error"``, of the levels that are missing from a training fold.
    """
    one = clone(residualizer)  # whose own folds nobody asks for
    if residualizer.on_unknown == "error":
        one.set_params(on_unknown="mean")
    lacking: dict[str, dict[Any, None]] = {}

    def fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> NDArray[Any]:
        own = weight if weight is None or isinstance(weight, str) else np.asarray(weight)[train]
        fitted = one.fit(take_rows(X, train), metadata=take_rows(metadata, train), sample_weight=own)
        X_test, metadata_test = take_rows(X, test), take_rows(metadata, test)
        if residualizer.on_unknown == "error" and fitted.design_.columns:
            for chunk in as_table(X_test, metadata=metadata_test).chunks(fitted.design_.columns):
                for column, levels in fitted.design_.matrix(chunk).unknown_levels.items():
                    lacking.setdefault(column, {}).update(dict.fromkeys(levels))
        return np.asarray(fitted.transform(X_test, metadata=metadata_test))

    out = cross_fitted(fold, list(splits(residualizer.cv, n_rows, groups)), n_rows)
    for column, levels in lacking.items():
        some = ", ".join(map(repr, list(levels)[:5])) + (f" and {len(levels) - 5} more" if len(levels) > 5 else "")
        many = f"{len(levels)} levels" if len(levels) > 1 else "1 level"
        warn(
            f"{many} of {column!r} ({some}) {'are' if len(levels) > 1 else 'is'} in one fold only, so the average "
            "effect was removed from these rows. Merge rare levels, use other folds, or set on_unknown to 'mean' or "
            "'shrink'",
            RareLevelWarning,
        )
    return out
