"""What a linear fit says about its coefficients: standard errors, tests, shares of variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import CollinearityWarning, DesignWarning, EntangledEffectsWarning, ManyColumnsWarning, warn
from residmix.moments.solve import LinearFit

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "canonical_correlations",
    "coefficient_table",
    "correlations_beside_factors",
    "explained",
    "summary_text",
    "warn_of_fit",
]

Array = NDArray[np.float64]

# Above this canonical correlation, what is removed and what is preserved share more than 9/10 of their variance.
_ENTANGLED = 0.95
# Residuals of this size relative to the feature's spread are what subtracting leaves of nothing.
_ROUNDING = 1e-10


def explained(fit: LinearFit) -> Array:
    """Return :math:`R^2 = 1 - RSS/TSS` per feature (d,); 0 for a constant feature, which leaves nothing to explain."""
    varies = fit.tss > 0
    return np.where(varies, 1.0 - fit.rss / np.where(varies, fit.tss, 1.0), 0.0)


def canonical_correlations(scatter: Array, n_removed: int) -> Array:
    r"""Return the canonical correlations between the first `n_removed` columns and the others, largest first.

    The singular values of :math:`S_{11}^{-1/2} S_{12} S_{22}^{-1/2}` (Hotelling 1936): 1 means that a combination of
    the ones is a combination of the others, so that no data can tell their effects apart.

    Parameters
    ----------
    scatter : ndarray (q, q)
        Centred scatter of all columns.
    """
    spread = np.sqrt(np.diagonal(scatter))
    scaled = scatter / np.where(spread > 0, spread, 1.0)[:, None] / np.where(spread > 0, spread, 1.0)
    one, two = slice(None, n_removed), slice(n_removed, None)
    whitened = _inverse_root(scaled[one, one]) @ scaled[one, two] @ _inverse_root(scaled[two, two]).T
    return np.minimum(np.linalg.svd(whitened, compute_uv=False), 1.0)


def correlations_beside_factors(scatter: Array, covariance: Array) -> Array:
    r"""Return the canonical correlations of preserved columns with everything else of a fit with absorbed factors.

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
    return vectors[:, keep].T / np.sqrt(values[keep])[:, None]


def coefficient_table(fit: LinearFit, columns: Sequence[str], features: Sequence[str]) -> pd.DataFrame:
    r"""Return one row per feature and coefficient, the intercept last.

    With :math:`\hat\sigma_j^2 = RSS_j / \nu_j` and :math:`\nu_j` residual degrees of freedom,
    :math:`se_{kj} = \hat\sigma_j \sqrt{C_{kk}}` where :math:`C = (A_c' W A_c)^{+}`; the statistic is Student's t with
    :math:`\nu_j` degrees, and partial :math:`R^2 = t^2/(t^2 + \nu_j)` is the share of the variance that the other
    columns leave which this one takes. With a ridge penalty C is the sandwich that belongs to the shrunk coefficients.

    Returns
    -------
    DataFrame
        Columns feature, term, estimate, std_error, statistic, p_value, partial_r2. NaN where no degree of freedom is
        left.
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
    degrees = fit.residual_degrees
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(np.where(degrees > 0, fit.rss / degrees, np.nan) * np.maximum(variances, 0.0))
        statistic = estimate / error
        p_value = 2.0 * stdtr(degrees, -np.abs(statistic))
        partial = 1.0 / (1.0 + degrees / statistic**2)
    return pd.DataFrame(
        {
            "feature": np.repeat(np.asarray(features, dtype=object), len(names)),
            "term": np.tile(np.asarray(names, dtype=object), d),
            "estimate": estimate.T.ravel(),
            "std_error": error.T.ravel(),
            "statistic": statistic.T.ravel(),
            "p_value": p_value.T.ravel(),
            "partial_r2": partial.T.ravel(),
        }
    )


def term_shares(fit: LinearFit, columns: slice) -> tuple[Array, Array]:
    r"""Return partial :math:`R^2` (d,) and the p-value (d,) of the F test of some columns together.

    The sum of squares that they add to the others is the Wald form :math:`b' (C_{bb})^{+} b`.
    """
    from scipy.special import fdtrc

    gain = np.empty(len(fit.rss))
    numerator = np.empty(len(fit.rss))
    for g in range(len(fit.covariance)):
        block = fit.covariance[g][columns, columns]
        spread = np.sqrt(np.maximum(np.diagonal(block), 0.0))
        spread = np.where(spread > 0, spread, 1.0)
        values, vectors = np.linalg.eigh(block / spread[:, None] / spread)
        keep = values > 1e-10 * np.max(values, initial=0.0)
        members = fit.group == g
        turned = vectors[:, keep].T @ (fit.coef[columns][:, members] / spread[:, None])
        gain[members] = np.sum(turned**2 / values[keep][:, None], axis=0)
        numerator[members] = np.count_nonzero(keep)
    degrees = fit.residual_degrees
    with np.errstate(divide="ignore", invalid="ignore"):
        share = gain / (gain + fit.rss)
        statistic = (gain / numerator) / (fit.rss / degrees)
        p_value = np.where(
            (degrees > 0) & (numerator > 0), fdtrc(numerator, np.maximum(degrees, 1.0), statistic), np.nan
        )
    return np.where(gain > 0, share, 0.0), p_value


def summary_text(
    fit: LinearFit,
    terms: Sequence[tuple[str, slice, bool]],
    columns: Sequence[str],
    features: Sequence[str],
    owners: Mapping[int, str] | None = None,
) -> str:
    """Return a page of text: the size of the problem, what each term explains, the features most affected.

    `owners` are those of :func:`aliases`.
    """
    r2 = explained(fit)
    rows = int(fit.count.max(initial=0))
    beside = " and the levels of absorbed factors" if any(where.start == where.stop for _, where, _ in terms) else ""
    lines = [
        f"{len(features)} features on {len(columns)} design columns, {rows} rows",
        f"rank {fit.rank} of {len(columns)}{beside}, condition number {fit.condition_number:.3g}, "
        f"residual degrees of freedom {fit.residual_degrees[fit.count > 0].min(initial=np.inf):g}",
        f"R2: median {np.median(r2):.3f}, from {r2.min():.3f} to {r2.max():.3f}",
    ]
    if terms:
        width = max(len("term"), *(len(name) for name, _, _ in terms))
        lines += ["", f"{'term':<{width}}  columns  partial R2 (median, max)  features with p < 0.05"]
        for name, where, preserved in terms:
            if where.start == where.stop:
                lines.append(f"{name:<{width}}  absorbed")
                continue
            share, p = term_shares(fit, where)
            count = where.stop - where.start
            kept = "  (preserved)" if preserved else ""
            lines.append(
                f"{name:<{width}}  {count:>7}  {np.median(share):>11.3f}, {share.max():<11.3f}"
                f"  {np.count_nonzero(p < 0.05):>10}{kept}"
            )
        width = max(len("feature"), *(len(name) for name in features))
        lines += ["", f"{'feature':<{width}}     R2"]
        order = np.argsort(-r2, kind="stable")[:10]
        lines += [f"{features[j]:<{width}}  {r2[j]:.3f}" for j in order]
    lines += [f"aliased: {told}" for told in aliases(fit, columns, owners or {})]
    return "\n".join(lines)


def aliases(fit: LinearFit, columns: Sequence[str], owners: Mapping[int, str]) -> list[str]:
    """Return "'scanner[T.s2]' is determined by 'site[T.b]'" for each aliased column.

    Parameters
    ----------
    owners : mapping of int to str
        What determines a column for which the fit names no other columns: :func:`residmix.nesting.owners`.
    """

    def named(partners: tuple[int, ...]) -> str:
        return " and ".join("the intercept" if k < 0 else repr(columns[k]) for k in partners)

    return [
        f"{columns[column]!r} is determined by {named(partners) if partners else owners[column]}"
        for column, partners in fit.aliased.items()
    ]


def warn_of_fit(
    fit: LinearFit,
    names: Sequence[str],
    features: NDArray[Any],
    correlations: NDArray[np.float64],
    *,
    penalised: bool,
    owners: Mapping[int, str] | None = None,
    nested: Sequence[str] = (),
) -> None:
    """Warn of aliased columns, of effects that can't be told apart, of features without values, of too many columns.

    Parameters
    ----------
    correlations : ndarray
        Canonical correlations between removed and preserved columns.
    penalised : bool
        Whether a penalty settles what collinear columns leave open.
    owners : mapping of int to str
        As in :func:`aliases`.
    nested : sequence of str
        What :func:`residmix.nesting.nested_factors` says of absorbed factors.
    """
    if fit.aliased and not penalised:
        told = "; ".join(aliases(fit, names, owners or {})[:8])
        more = "" if len(fit.aliased) <= 8 else f"; and {len(fit.aliased) - 8} more"
        warn(
            f"{len(fit.aliased)} of {len(names)} design columns are aliased: {told}{more}. Residuals don't depend on "
            "it; coefficients are those of least norm",
            CollinearityWarning,
        )
    if len(correlations) and correlations[0] > _ENTANGLED:
        warn(
            f"what is removed and what is preserved are nearly collinear: canonical correlation {correlations[0]:.4f}; "
            "their effects can hardly be told apart, so the residuals depend on the noise of few rows",
            EntangledEffectsWarning,
        )
    for told in nested:
        warn(told, CollinearityWarning)
    known = fit.count > 0
    if not known.all():
        absent = ", ".join(str(name) for name in np.asarray(features)[~known][:8])
        warn(f"features without a single value, left as they are: {absent}", DesignWarning)
    exact = known & (fit.tss > 0) & (fit.rss <= _ROUNDING**2 * fit.tss) & (fit.residual_degrees > 0)
    if exact.any():
        some = ", ".join(repr(str(name)) for name in np.asarray(features)[exact][:8])
        warn(
            f"{exact.sum()} of {len(exact)} features are determined by the design ({some}): what is left of them is "
            "rounding, of which a scaler makes pure metadata; leave them out",
            DesignWarning,
        )
    count = float(fit.count[known].min(initial=np.inf))
    columns = float(fit.degrees.max(initial=0.0))
    if columns > 0 and columns + 1 > count / 2:
        left = max(count - 1 - columns, 0.0) / max(count, 1.0)
        warn(
            f"{columns:.4g} design columns for {count:.0f} rows: in-sample residuals keep only {left:.0%} of the "
            "noise's variance, and those of new rows are inflated; use fewer columns or a penalty (alpha)",
            ManyColumnsWarning,
        )
