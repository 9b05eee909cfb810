"""Random effects of a factor's levels, shrunk by the ratio of noise variance to the variance of the levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.effects.random.predicted import RandomEffects, generalised_inverse, level_indicators
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.solve import LinearFit, constant_features
from residmix.rows.threads import one_blas_thread

__all__ = ["random_effects", "variance_ratio"]

Array = NDArray[np.float64]

# Below this share of its largest eigenvalue, a direction of the levels is one that the other columns hold already.
_NULL = 1e-10
# Variance ratios looked at, relative to the rows of a typical level: from none of the noise to all of the signal.
_SPAN = np.linspace(-18.0, 23.0, 83)


def random_effects(
    moments: LinearMoments, fit: LinearFit, columns: slice, levels: Array, ratio: Array | None = None
) -> tuple[LinearFit, RandomEffects]:
    r"""Return `fit` with the effects of one factor shrunk and the other coefficients refitted.

    .. math:: x = F \beta + Z u + e, \quad u \sim N(0, \tau^2 I), \quad e \sim N(0, \sigma^2 W^{-1})

    F is the intercept and every other design column, Z the indicators of the levels. The variance ratio of each feature
    maximises the restricted likelihood (REML), which needs nothing but moments: with M the projection off F and
    :math:`Z'MZ = V \mathrm{diag}(s) V'`, the contrasts :math:`c = s^{-1/2} V'Z'Mx` are independent
    :math:`N(0, \sigma^2 + \tau^2 s)`, and the residual sum of squares has the other degrees of freedom. So one
    eigenproblem serves all features, and what is left is a function of one number per feature, minimised on a grid and
    then by bisection of its derivative. Effects are :math:`\hat u = V (s + \lambda)^{-1} V'Z'Mx`, the ridge solution
    with penalty :math:`\lambda` on the effects about their mean.

    Parameters
    ----------
    moments, fit
        As `residmix.moments.solving.solve.fit_linear` returned them, without penalty. Where the condition number of the
        columns is above 1e3, the result has fewer correct digits than `fit`, since it is computed from the moments.
    columns : slice
        Columns of the factor in the design.
    levels : ndarray (L, w)
        Its design columns for each level.
    ratio : ndarray (d,), optional
        Variance ratios to use instead of estimated ones.

    Raises
    ------
    ValueError
        If the columns don't distinguish all levels.

    References
    ----------
    Patterson and Thompson, Biometrika 58, 1971 (REML); Robinson, Statistical Science 6, 1991 (BLUP); Kang et al.,
    Genetics 178, 2008 (the restricted likelihood diagonalised).
    """
    L = len(levels)
    start, turn = level_indicators(levels)
    q, d = moments.s_ax.shape
    products = np.where(constant_features(moments), 0.0, moments.s_ax)
    others = np.setdiff1d(np.arange(q), np.arange(columns.start, columns.stop))
    coef, found, noise = np.empty((q, d)), np.empty(d), np.empty(d)
    effects, rows = np.empty((L, d)), np.empty((L, d))
    with one_blas_thread():
        for g in range(len(moments.weight)):
            mine = np.arange(d) if len(moments.weight) == 1 else np.array([g])
            scatter, cross = moments.s_aa[g], products[:, mine]
            free = generalised_inverse(scatter[np.ix_(others, others)])
            beside = turn.T @ scatter[columns][:, others]
            own = turn.T @ scatter[columns, columns] @ turn
            values, vectors = np.linalg.eigh(own - beside @ free @ beside.T)
            keep = values > _NULL * np.trace(own) if np.trace(own) > 0 else np.zeros(L, dtype=bool)
            values, vectors = values[keep], vectors[:, keep]
            turned = vectors.T @ (turn.T @ cross[columns] - beside @ (free @ cross[others]))
            size = turned**2 / values[:, None]
            if ratio is None:
                found[mine] = 1.0 / variance_ratio(values, size, fit.rss[mine], fit.residual_degrees[mine])
            else:
                found[mine] = ratio[mine]
            # of the prior and of the noise, whichever is larger is divided by
            lam, s = found[mine], values[:, None]
            small, large = np.minimum(lam, 1.0), np.maximum(lam, 1.0)
            inflated = np.where(lam > 1.0, size / (1.0 + s / large), size * small / (s + small))
            degrees = np.maximum(fit.residual_degrees[mine] + len(values), 1.0)
            noise[mine] = (fit.rss[mine] + inflated.sum(axis=0)) / degrees
            shrunk = vectors @ (turned / (values[:, None] + found[mine]))
            effects[:, mine] = shrunk
            coef[columns, mine] = turn @ shrunk
            coef[others[:, None], mine] = free @ (cross[others] - beside.T @ shrunk)
            mean = start + moments.mean_a[g, columns] @ turn
            rows[:, mine] = (moments.weight[g] * mean)[:, None]
    offset = np.einsum("dq,qd->d", np.broadcast_to(moments.offset_a, (d, q)), coef)
    return replace(fit, coef=coef, constant=moments.offset_x - offset), RandomEffects(effects, found, rows, noise)


def variance_ratio(values: Array, size: Array, rss: Array, degrees: Array) -> Array:
    """Return the REML estimates (d,) of variance of levels over that of noise; a tiny number stands for 0.

    Parameters
    ----------
    values : ndarray (r,)
        Eigenvalues s.
    size : ndarray (r, d)
        Squared contrasts, of expectation ``sigma^2 (1 + ratio s)``.
    rss, degrees : ndarray (d,)
        Of the noise.
    """
    none = np.full(len(rss), np.finfo(float).tiny)
    total = rss + size.sum(axis=0)
    usable = (degrees > 0) & (total > 0)
    if not len(values) or not usable.any():
        return none
    # Without this floor a feature that its levels explain exactly has no optimum.
    rss = np.maximum(rss, 1e-15 * total)
    typical = values.mean()
    count = np.where(usable, degrees + len(values), 1.0)

    def deviance(t: Array) -> Array:
        inflated = 1.0 + np.exp(t) / typical * values[:, None]
        return np.asarray(
            count * np.log(np.where(usable, rss + (size / inflated).sum(axis=0), 1.0)) + np.log(inflated).sum(axis=0)
        )

    def slope(t: Array) -> Array:
        gain = np.exp(t) / typical
        inflated = 1.0 + gain * values[:, None]
        noise = np.where(usable, rss + (size / inflated).sum(axis=0), 1.0)
        falls = count * (size * values[:, None] / inflated**2).sum(axis=0) / noise
        return np.asarray((values[:, None] / inflated).sum(axis=0) - falls)

    grid = np.array([deviance(np.full(len(rss), t)) for t in _SPAN])
    best = grid.argmin(axis=0)
    low, high = _SPAN[np.maximum(best - 1, 0)], _SPAN[np.minimum(best + 1, len(_SPAN) - 1)]
    for _ in range(50):
        middle = (low + high) / 2
        rising = slope(middle) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    at = (low + high) / 2
    at_zero = count * np.log(np.where(usable, total, 1.0))
    return np.where(usable & (deviance(at) < at_zero), np.exp(at) / typical, none)
