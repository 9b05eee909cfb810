"""Random effects of several factors at once, each with a variance of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize

from residmix.effects.random.predicted import RandomEffects, generalised_inverse, level_indicators
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.solve import LinearFit, constant_features
from residmix.rows.threads import one_blas_thread

__all__ = ["crossed_effects"]

Array = NDArray[np.float64]

# Logarithms of a variance ratio that are looked at, relative to the rows of a typical level: as for one factor.
_LOWEST, _HIGHEST = -18.0, 23.0


def crossed_effects(
    moments: LinearMoments, fit: LinearFit, factors: list[tuple[slice, Array]]
) -> tuple[LinearFit, list[RandomEffects]]:
    r"""Return `fit` with the effects of several factors shrunk and the other coefficients refitted.

    .. math:: x = F \beta + \sum_f Z_f u_f + e, \quad u_f \sim N(0, \tau_f^2 I), \quad e \sim N(0, \sigma^2 W^{-1})

    With M the projection off F, :math:`G = Z'MZ`, :math:`c = Z'Mx` and :math:`\Gamma` the diagonal of the ratios
    :math:`\gamma_f = \tau_f^2 / \sigma^2`, the effects are :math:`\hat u = T c`, :math:`T = (G + \Gamma^{-1})^{-1}`,
    and twice the negative restricted log-likelihood, profiled over :math:`\sigma^2`, is

    .. math:: \nu \log(x'Mx - c'Tc) + \log |I + \Gamma^{1/2} G \Gamma^{1/2}|,

    with :math:`\nu` the number of rows less the columns of F. Its derivative in :math:`\log \gamma_f` is :math:`L_f -
    tr(T_{ff})/\gamma_f - \nu (\hat u_f'\hat u_f / \gamma_f) / (x'Mx - c'Tc)`; L-BFGS-B minimises it, feature by
    feature.

    Parameters
    ----------
    moments, fit
        As :func:`residmix.moments.solving.solve.fit_linear` returned them, without penalty.
    factors : list of (slice, ndarray (L, L - 1))
        The columns of each in the design, and its design columns for each level.

    Raises
    ------
    ValueError
        If a factor's columns don't distinguish all levels.

    References
    ----------
    Patterson and Thompson, Biometrika 58, 1971 (REML); Robinson, Statistical Science 6, 1991 (BLUP).
    """
    q, d = moments.s_ax.shape
    products = np.where(constant_features(moments), 0.0, moments.s_ax)
    starts, turn = [], np.zeros((q, sum(len(levels) for _, levels in factors)))
    bounds = np.cumsum([0, *(len(levels) for _, levels in factors)])
    parts = [slice(low, high) for low, high in pairwise(bounds)]
    shrunken = np.zeros(q, dtype=bool)
    for (columns, levels), part in zip(factors, parts, strict=True):
        start, turn[columns, part] = level_indicators(levels)
        starts.append(start)
        shrunken[columns] = True
    others = np.flatnonzero(~shrunken)
    coef, effects = np.empty((q, d)), np.empty((bounds[-1], d))
    ratio, rows, noise = np.empty((len(factors), d)), np.empty((bounds[-1], d)), np.empty(d)
    with one_blas_thread():
        for g in range(len(moments.weight)):
            mine = np.arange(d) if len(moments.weight) == 1 else np.array([g])
            scatter, cross = moments.s_aa[g], products[:, mine]
            free = generalised_inverse(scatter[np.ix_(others, others)])
            beside = turn.T @ scatter[:, others]
            own = turn.T @ scatter @ turn - beside @ free @ beside.T
            turned = turn.T @ cross - beside @ (free @ cross[others])
            explained = np.einsum("rd,rd->d", turned, generalised_inverse(own) @ turned)
            total = fit.rss[mine] + explained
            rank = np.linalg.matrix_rank(own, tol=1e-10 * max(float(np.trace(own)), 1e-300), hermitian=True)
            degrees = fit.residual_degrees[mine] + rank
            for j, feature in enumerate(mine):
                gains = _ratios(own, turned[:, j], float(total[j]), float(degrees[j]), parts)
                ratio[:, feature] = 1.0 / gains
                effects[:, feature] = _solve(own, _spread(gains, parts), turned[:, j])[0]
                rest = float(total[j]) - float(turned[:, j] @ effects[:, feature])
                noise[feature] = max(rest, 0.0) / max(float(degrees[j]), 1.0)
            coef[:, mine] = turn @ effects[:, mine]
            coef[np.ix_(others, mine)] = free @ (cross[others] - beside.T @ effects[:, mine])
            shares = np.concatenate(starts) + moments.mean_a[g] @ turn
            rows[:, mine] = (moments.weight[g] * shares)[:, None]
    offset = np.einsum("dq,qd->d", np.broadcast_to(moments.offset_a, (d, q)), coef)
    found = [RandomEffects(effects[part], ratio[f], rows[part], noise) for f, part in enumerate(parts)]
    return replace(fit, coef=coef, constant=moments.offset_x - offset), found


def _spread(gains: Array, parts: list[slice]) -> Array:
    """Return the ratio of each level, (r,)."""
    return np.repeat(gains, [part.stop - part.start for part in parts])


def _solve(own: Array, gains: Array, turned: Array) -> tuple[Array, Array, float]:
    """Return T c, the diagonal of T, and log |I + Gamma^(1/2) G Gamma^(1/2)|; all of order 1 whatever the ratios."""
    root = np.sqrt(gains)
    A = np.eye(len(root)) + root[:, None] * own * root
    try:
        factor = cho_factor(A, lower=True)
    except LinAlgError:  # large ratios make rounding of G exceed the identity
        values, vectors = np.linalg.eigh(A)
        values = np.maximum(values, 1.0)
        inverse, size = (vectors / values) @ vectors.T, float(np.log(values).sum())
    else:
        inverse, size = cho_solve(factor, np.eye(len(root))), 2.0 * float(np.log(np.diagonal(factor[0])).sum())
    return root * (inverse @ (root * turned)), gains * np.diagonal(inverse), size


def _ratios(own: Array, turned: Array, total: float, degrees: float, parts: list[slice]) -> Array:
    """Return the REML estimates of a feature's variance ratios; a tiny number stands for 0."""
    none = np.full(len(parts), np.finfo(float).tiny)
    typical = np.array([np.diagonal(own)[part].mean() for part in parts])
    if not (degrees > 0 and total > 0 and (typical > 0).all()):
        return none

    def deviance(t: Array) -> tuple[float, Array]:
        gains = np.exp(t) / typical
        effects, diagonal, size = _solve(own, _spread(gains, parts), turned)
        # without this floor a feature that its levels explain exactly has no optimum
        rest = max(total - float(turned @ effects), 1e-15 * total)
        slope = [
            part.stop - part.start - (diagonal[part].sum() + degrees * (effects[part] @ effects[part]) / rest) / gain
            for part, gain in zip(parts, gains, strict=True)
        ]
        return degrees * np.log(rest / total) + size, np.array(slope)

    limits = [(_LOWEST, _HIGHEST)] * len(parts)
    best = min(
        (
            minimize(deviance, np.full(len(parts), begin), jac=True, method="L-BFGS-B", bounds=limits, tol=1e-14)
            for begin in (0.0, 4.0)
        ),
        key=lambda found: float(found.fun),
    )
    return np.where(best.x > _LOWEST + 1e-6, np.exp(best.x) / typical, none)
