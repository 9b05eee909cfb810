"""Inference for a linear fit: standard errors, tests, shares of variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from residmix.moments.solving.solve import LinearFit

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "canonical_correlations",
    "coefficient_table",
    "correlations_beside_factors",
    "explained",
    "removed_degrees",
]

Array = NDArray[np.float64]

# As in residmix.moments.solving.aliased: what moves coefficients by less doesn't.
_MOVES = 1e-6


def explained(fit: LinearFit) -> Array:
    """Return :math:`R^2 = 1 - RSS/TSS` per feature (d,); 0 for a constant feature."""
    varies = fit.tss > 0
    return np.where(varies, 1.0 - fit.rss / np.where(varies, fit.tss, 1.0), 0.0)


def removed_degrees(fit: LinearFit, n_removed: int) -> Array:
    """Return the degrees of freedom of the removed effects for each feature (d,), including absorbed factors.

    They have what they share with preserved ones: of these counts what the preserved coefficients vary by.
    """
    kept = [_rank(own[n_removed:, n_removed:]) for own in _scaled(fit)]
    return np.asarray((fit.degrees - kept)[fit.group])


def _rank(covariance: Array) -> int:
    """Return the rank; numpy before 2 has none for a matrix without columns."""
    return int(np.linalg.matrix_rank(covariance, hermitian=True)) if covariance.size else 0


def _scaled(fit: LinearFit) -> Array:
    """Return the covariances (g, q, q) of coefficients of columns of unit spread."""
    scale = np.ones(fit.covariance.shape[:2]) if fit.scale is None else fit.scale
    return np.asarray(fit.covariance * scale[:, :, None] * scale[:, None, :])


def canonical_correlations(scatter: Array, n_removed: int) -> Array:
    r"""Return the canonical correlations between the first `n_removed` columns and the others, largest first.

    The singular values of :math:`S_{11}^{-1/2} S_{12} S_{22}^{-1/2}` (Hotelling 1936): 1 means that a combination of
    the ones is a combination of the others, so that their effects can't be separated.

    Parameters
    ----------
    scatter : ndarray (q, q)
        Centred scatter of all columns.
    """
    spread = np.sqrt(np.diagonal(scatter))
    scaled = scatter / np.where(spread > 0, spread, 1.0)[:, None] / np.where(spread > 0, spread, 1.0)
    one, two = slice(None, n_removed), slice(n_removed, None)
    whitened = _inverse_root(scaled[one, one]) @ scaled[one, two] @ _inverse_root(scaled[two, two]).T
    return np.asarray(np.minimum(np.linalg.svd(whitened, compute_uv=False), 1.0))


def correlations_beside_factors(scatter: Array, covariance: Array) -> Array:
    r"""Return the canonical correlations of preserved columns with all other columns and absorbed factors.

    What the others leave of the scatter S of the preserved columns is the inverse of their block C of the coefficients'
    covariance, so :math:`S^{1/2} C S^{1/2}` has the eigenvalues :math:`1 / (1 - \rho^2)`.

    Parameters
    ----------
    scatter, covariance : ndarray (k, k)
        S and C; a column that others determine has zeros in C.
    """
    spread = np.sqrt(np.diagonal(scatter))
    spread = np.where(spread > 0, spread, 1.0)
    values, vectors = np.linalg.eigh(scatter / spread[:, None] / spread)
    keep = values > values[-1] * 1e-12
    root = vectors[:, keep] * np.sqrt(values[keep])
    inflation = np.linalg.eigvalsh(root.T @ (covariance * spread[:, None] * spread) @ root)
    return np.sort(np.sqrt(1.0 - np.minimum(1.0 / np.where(inflation > 0.5, inflation, np.inf), 1.0)))[::-1]


def _inverse_root(scaled: Array) -> Array:
    values, vectors = np.linalg.eigh(scaled)
    keep = values > values[-1] * 1e-12 if len(values) else np.zeros(0, dtype=bool)
    return np.asarray(vectors[:, keep].T / np.sqrt(values[keep])[:, None])


def coefficient_table(
    fit: LinearFit, columns: Sequence[str], features: Sequence[str], applied: LinearFit | None = None
) -> pd.DataFrame:
    r"""Return one row per feature and coefficient, the intercept last.

    With :math:`\hat\sigma_j^2 = RSS_j / \nu_j` and :math:`\nu_j` residual degrees of freedom, :math:`se_{kj} =
    \hat\sigma_j \sqrt{C_{kk}}` where :math:`C = (A_c' W A_c)^{+}`; the statistic is Student's t with :math:`\nu_j`
    degrees, and partial :math:`R^2 = t^2/(t^2 + \nu_j)` is the share of the variance left by the other columns that
    this one explains. With a ridge penalty C is the sandwich covariance of the shrunk coefficients.

    A coefficient that can't be estimated is NaN, with its error and test: its column depends linearly on others of the
    same or earlier terms. An effect shared by several terms is attributed to the earliest one
    (:mod:`residmix.moments.solving.aliased`).

    If shrunk effects are `applied`, the estimate is the shrunk one, and the column "unshrunk" has that of least
    squares. Error, statistic and shares are those of least squares.

    Returns
    -------
    DataFrame
        Columns feature, term, estimate, std_error, statistic, p_value, partial_r2. All but the estimate are NaN where
        no degree of freedom is left.
    """
    import pandas as pd
    from scipy.special import stdtr

    d, names = len(features), [*columns, "Intercept"]
    mean = fit.origin_a + fit.offset_a  # (groups, q)
    variances = np.einsum("gkk->gk", fit.covariance)[fit.group].T  # (q, d)
    at_zero = np.einsum("gk,gkl,gl->g", mean, fit.covariance, mean)[fit.group] + 1.0 / np.where(
        fit.weight > 0, fit.weight, np.nan
    )
    variances = np.vstack([variances, at_zero])
    estimate = np.vstack([fit.coef, fit.intercept])
    if fit.unknown is not None:
        estimate[fit.unknown[fit.group].T] = np.nan
    degrees = fit.residual_degrees
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(np.where(degrees > 0, fit.rss / degrees, np.nan) * np.maximum(variances, 0.0))
        error[np.isnan(estimate)] = np.nan
        statistic = estimate / error
        p_value = 2.0 * stdtr(degrees, -np.abs(statistic))
        partial = 1.0 / (1.0 + degrees / statistic**2)
    shown = estimate
    if applied is not None:
        shown = np.vstack([applied.coef, applied.intercept])
        shown[np.isnan(estimate)] = np.nan
    table = pd.DataFrame(
        {
            "feature": np.repeat(np.asarray(features, dtype=object), len(names)),
            "term": np.tile(np.asarray(names, dtype=object), d),
            "estimate": shown.T.ravel(),
            "std_error": error.T.ravel(),
            "statistic": statistic.T.ravel(),
            "p_value": p_value.T.ravel(),
            "partial_r2": partial.T.ravel(),
        }
    )
    if applied is not None:
        table["unshrunk"] = estimate.T.ravel()
    return table


def term_shares(fit: LinearFit, columns: slice) -> tuple[Array, Array, Array]:
    r"""Return partial :math:`R^2`, p-value and numerator's degrees of the F test of some columns together, each (d,).

    The sum of squares that they add to the others is the Wald form :math:`(L'b)' (L' C_{bb} L)^{-1} L'b` of what of
    their coefficients b can be told from the others: L spans what no direction that leaves the fit as it is moves.
    Columns that are determined by the others add nothing: 0 degrees of freedom and no p-value.
    """
    from scipy.special import fdtrc

    gain, numerator = np.zeros(len(fit.rss)), np.zeros(len(fit.rss))
    for g in range(len(fit.covariance)):
        members = fit.group == g
        tell, scale = _told_from_others(fit, g, columns)
        block = tell.T @ (fit.covariance[g][columns, columns] * scale[:, None] * scale) @ tell
        spread = np.sqrt(np.maximum(np.diagonal(block), 0.0))
        spread = np.where(spread > 0, spread, 1.0)
        values, vectors = np.linalg.eigh(block / spread[:, None] / spread)
        keep = values > 1e-10 * np.max(values, initial=0.0)
        turned = vectors[:, keep].T @ (tell.T @ (fit.coef[columns][:, members] * scale[:, None]) / spread[:, None])
        gain[members] = np.sum(turned**2 / values[keep][:, None], axis=0)
        numerator[members] = np.count_nonzero(keep)
    degrees = fit.residual_degrees
    with np.errstate(divide="ignore", invalid="ignore"):
        share = gain / (gain + fit.rss)
        statistic = (gain / numerator) / (fit.rss / degrees)
        p_value = np.where(
            (degrees > 0) & (numerator > 0), fdtrc(numerator, np.maximum(degrees, 1.0), statistic), np.nan
        )
    return np.where(gain > 0, share, 0.0), p_value, numerator


def _told_from_others(fit: LinearFit, g: int, columns: slice) -> tuple[Array, Array]:
    """Return what can be told (k, r) of the k coefficients of `columns` in units of their scale (k,)."""
    width = len(range(*columns.indices(len(fit.coef))))
    if fit.scale is None or not fit.null[g].shape[1]:
        return np.eye(width), np.ones(width) if fit.scale is None else fit.scale[g, columns]
    left, values, _ = np.linalg.svd(fit.null[g][columns])
    return left[:, np.count_nonzero(values > _MOVES) :], fit.scale[g, columns]
