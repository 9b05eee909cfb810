"""Random intercepts and slopes of one factor, with any covariance: each subject has a line of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

from residmix.effects.random.predicted import RandomEffects, level_indicators
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.solve import LinearFit, constant_features
from residmix.rows.threads import one_blas_thread

__all__ = ["sloped_effects"]

Array = NDArray[np.float64]

# Beside its largest, an eigenvalue of the fixed columns' scatter below this is that of an aliased direction.
_ALIASED = 1e-12
_NONE = 1e-300


def sloped_effects(
    moments: LinearMoments,
    fit: LinearFit,
    factor: tuple[slice, Array],
    slopes: list[tuple[int, slice]],
) -> tuple[LinearFit, list[RandomEffects]]:
    r"""Return `fit` with random lines for the levels of a factor, and the other coefficients refitted.

    .. math::
        x = F \beta + \sum_i Z_i u_i + e, \quad u_i \sim N(0, \sigma^2 \Gamma), \quad e \sim N(0, \sigma^2 W^{-1})

    :math:`Z_i` has a column of ones and one for each variable, in the rows of level i, and :math:`\Gamma = L L'` is any
    covariance, so that the answer doesn't depend on where time is counted from. With :math:`K_i = Z_i' W Z_i` and
    :math:`B_i = L (I + L' K_i L)^{-1} L'`, the matrices :math:`F' V^{-1} F = F'WF - \sum_i F'WZ_i B_i Z_i'WF` and the
    like are sums over the levels, and twice the negative restricted log-likelihood, profiled over :math:`\sigma^2`, is

    .. math::
        \nu \log x'Px + \sum_i \log |I + L' K_i L| + \log |F' V^{-1} F|, \quad
        \frac{\partial}{\partial L} = 2 \sum_i \left(Z_i'PZ_i - \frac{\nu}{x'Px} Z_i'P x x'P Z_i\right) L,

    with :math:`P = V^{-1} - V^{-1} F (F' V^{-1} F)^{-1} F' V^{-1}` and :math:`\nu` the number of rows less the rank of
    F. BFGS minimises it over the lower triangle of L, feature by feature; all it needs are moments.

    Parameters
    ----------
    moments, fit
        As :func:`residmix.moments.solving.solve.fit_linear` returned them, without penalty.
    factor : slice, ndarray (L, L - 1)
        Columns of the factor in the design, and its design columns for each level.
    slopes : list of (int, slice)
        For each variable its column, and those of its product with the factor.

    Returns
    -------
    LinearFit
    list of RandomEffects
        Intercepts at the mean of the variables, then the slopes by each.

    References
    ----------
    Laird and Ware, "Random-effects models for longitudinal data", Biometrics 38 (1982). Bates, Maechler, Bolker and
    Walker, "Fitting linear mixed-effects models using lme4", Journal of Statistical Software 67 (2015).
    """
    columns, levels = factor
    start, turn = level_indicators(levels)
    q, d = moments.s_ax.shape
    random = np.zeros(q, dtype=bool)
    for part in (columns, *(products for _, products in slopes)):
        random[part] = True
    others = np.flatnonzero(~random)
    products = np.where(constant_features(moments), 0.0, moments.s_ax)
    coef = np.empty((q, d))
    s, n_levels = 1 + len(slopes), len(levels)
    effects, ratio, noise = np.empty((s, n_levels, d)), np.empty((s, d)), np.empty(d)
    rows, correlation = np.empty((n_levels, d)), np.full((s, s, d), np.nan)
    with one_blas_thread():
        for g in range(len(moments.weight)):
            mine = np.arange(d) if len(moments.weight) == 1 else np.array([g])
            lines = _Lines.of(moments, g, columns, start, turn, slopes, others)
            for j in mine:
                found = lines.fitted(products[:, j], float(moments.s_xx[j]))
                coef[:, j], effects[:, :, j], noise[j] = found.coef, found.effects.T, found.noise
                sizes = np.diagonal(found.covariance)
                ratio[:, j] = 1.0 / np.maximum(sizes, _NONE)
                known = np.sqrt(np.outer(sizes, sizes))
                correlation[:, :, j] = np.where(known > 0, found.covariance / np.where(known > 0, known, 1.0), np.nan)
            rows[:, mine] = lines.rows[:, None]
    offset = np.einsum("dq,qd->d", np.broadcast_to(moments.offset_a, (d, q)), coef)
    random_effects = [
        RandomEffects(effects[r], ratio[r], rows, noise, None if r == 0 else correlation[0, r]) for r in range(s)
    ]
    return replace(fit, coef=coef, constant=moments.offset_x - offset), random_effects


@dataclass(frozen=True)
class _Line:
    """Of one feature: coefficients (q,), effects (L, s), their covariance over that of the noise (s, s), noise."""

    coef: Array
    effects: Array
    covariance: Array
    noise: float


@dataclass(frozen=True)
class _Lines:
    """The moments of the levels' lines, about the mean of the rows.

    Attributes
    ----------
    map : ndarray (1 + q, L, s)
        Z as sums of 1 and the centred design columns.
    fixed : ndarray (1 + q, f)
        F in the same way, orthonormal over the rows.
    own : ndarray (L, s, s)
        K.
    cross : ndarray (L, s, f)
        Z'WF.
    rows : ndarray (L,)
        Weight of the rows of each level.
    degrees : float
    """

    map: Array
    fixed: Array
    own: Array
    cross: Array
    rows: Array
    scale: Array
    degrees: float

    @classmethod
    def of(
        cls,
        moments: LinearMoments,
        g: int,
        columns: slice,
        start: Array,
        turn: Array,
        slopes: list[tuple[int, slice]],
        others: NDArray[np.intp],
    ) -> _Lines:
        """Return those of the rows of one group of features."""
        q, n_levels = moments.s_aa.shape[1], len(start)
        mean, scatter = moments.mean_a[g], np.zeros((q + 1, q + 1))
        scatter[0, 0], scatter[1:, 1:] = moments.weight[g], moments.s_aa[g]
        to = np.zeros((q + 1, n_levels, 1 + len(slopes)))
        share = start + mean[columns] @ turn
        to[0, :, 0], to[1:, :, 0][columns] = share, turn
        scale = np.ones(1 + len(slopes))
        for r, (number, product) in enumerate(slopes, start=1):
            # (t - mean) times the indicators; the factor's reference level is in t alone
            to[0, :, r] = mean[product] @ turn + start * mean[number] - mean[number] * share
            to[1:, :, r][product] = turn
            to[1 + number, :, r] += start
            to[1:, :, r][columns] -= mean[number] * turn
            scale[r] = np.sqrt(max(scatter[1 + number, 1 + number] / max(moments.weight[g], 1e-300), 1e-300))
        to /= scale
        half = np.einsum("pq,qis->pis", scatter, to, optimize=True)
        own = np.einsum("pir,pis->irs", to, half, optimize=True)
        beside = np.concatenate([[0], 1 + others])
        size = np.sqrt(np.maximum(np.diagonal(scatter)[beside], 0.0))
        size = np.where(size > 0, size, 1.0)
        values, vectors = np.linalg.eigh(scatter[np.ix_(beside, beside)] / size[:, None] / size)
        keep = values > _ALIASED * values[-1]
        fixed = np.zeros((q + 1, np.count_nonzero(keep)))
        fixed[beside] = vectors[:, keep] / np.sqrt(values[keep]) / size[:, None]
        cross = np.einsum("pis,pf->isf", half, fixed, optimize=True)
        degrees = float(moments.count[g]) - fixed.shape[1]
        return cls(to, fixed, 0.5 * (own + np.swapaxes(own, 1, 2)), cross, own[:, 0, 0].copy(), scale, degrees)

    def fitted(self, products: Array, total: float) -> _Line:
        """Return the fit of a feature with these products with the design, and this sum of squares."""
        s, low = self.own.shape[1], np.tril_indices(self.own.shape[1])
        with_x = np.einsum("pis,p->is", self.map[1:], products, optimize=True)
        beside = self.fixed[1:].T @ products
        rest = total - float(beside @ beside)
        degrees = max(self.degrees, 1.0)
        nothing = np.zeros((s, s))
        if self.degrees <= 0 or rest <= 1e-14 * total or total <= 0:
            return self._line(nothing, with_x, beside, total, degrees)

        def deviance(theta: Array) -> tuple[float, Array]:
            L = nothing.copy()
            L[low] = theta
            at = _At.of(L, self, with_x, beside, total)
            # without this floor a feature that its lines explain exactly has no optimum
            left = max(at.left, 1e-15 * total)
            slope = 2.0 * (at.information - degrees / left * at.residual.T @ at.residual) @ L
            return degrees * np.log(left / rest) + at.log_det, slope[low]

        # in units in which a typical level's rows hold as much as the prior
        typical = 1.0 / np.sqrt(np.maximum(np.einsum("irr->ir", self.own).mean(axis=0), 1e-300))
        found = min(
            (
                minimize(deviance, np.diag(begin * typical)[low], jac=True, method="BFGS", options=_BFGS)
                for begin in (1.0, 8.0)
            ),
            key=lambda one: float(one.fun),
        )
        L = nothing.copy()
        L[low] = found.x
        return self._line(L, with_x, beside, total, degrees)

    def _line(self, L: Array, with_x: Array, beside: Array, total: float, degrees: float) -> _Line:
        at = _At.of(L, self, with_x, beside, total)
        effects = at.residual @ (L @ L.T)
        coef = self.fixed @ at.beta + np.einsum("pis,is->p", self.map, effects, optimize=True)
        covariance = (L @ L.T) / np.outer(self.scale, self.scale)
        return _Line(coef[1:], effects / self.scale, covariance, max(at.left, 0.0) / degrees)


_BFGS = {"gtol": 1e-7, "maxiter": 300}


@dataclass(frozen=True)
class _At:
    """The likelihood at a covariance: x'Px, log determinants, Z'PZ summed (s, s), Z'Px (L, s), beta (f,)."""

    left: float
    log_det: float
    information: Array
    residual: Array
    beta: Array

    @classmethod
    def of(cls, L: Array, lines: _Lines, with_x: Array, beside: Array, total: float) -> _At:
        K, C = lines.own, lines.cross
        n_levels, s, f = C.shape
        factor = np.linalg.cholesky(np.eye(s) + L.T @ K @ L)
        # L (I + L'KL)^-1 L' is half' half, with half = factor^-1 L'
        half = np.linalg.solve(factor, np.broadcast_to(L.T, K.shape))
        flat = (half @ C).reshape(n_levels * s, f)
        x = np.einsum("irs,is->ir", half, with_x)
        inner = np.eye(f) - flat.T @ flat
        rest = beside - flat.T @ x.ravel()
        solver = cho_factor(inner, lower=True)
        beta = cho_solve(solver, rest)
        left = total - float(np.sum(x**2)) - float(rest @ beta)
        log_det = 2.0 * float(np.log(np.einsum("iss->is", factor)).sum() + np.log(np.diagonal(solver[0])).sum())
        through = np.swapaxes(half, 1, 2)
        ZVF = C - K @ (through @ flat.reshape(n_levels, s, f))
        ZVx = with_x - np.einsum("irs,is->ir", K @ through, x)
        spread = solve_triangular(solver[0], ZVF.reshape(n_levels * s, f).T, lower=True).T.reshape(n_levels, s, f)
        information = np.sum(K - (K @ through) @ (half @ K), axis=0)
        information -= np.einsum("irf,isf->rs", spread, spread, optimize=True)
        return cls(left, log_det, information, ZVx - ZVF @ beta, beta)
