r"""Variance ratios of several groups of random effects by restricted maximum likelihood, all features at once.

.. math:: x = F \beta + \sum_t Z_t u_t + e, \quad u_t \sim N(0, \tau_t^2 I), \quad e \sim N(0, \sigma^2 W^{-1})

A penalised spline is such a model: :math:`\lambda_t = \sigma^2 / \tau_t^2` is the smoothing parameter. With M the
projection off F, :math:`G = Z'MZ`, :math:`c = Z'Mx`, :math:`\Gamma` the diagonal of the ratios :math:`\gamma_t =
\tau_t^2 / \sigma^2`, :math:`B = (I + \Gamma^{1/2} G \Gamma^{1/2})^{-1}` and :math:`v = B \Gamma^{1/2} c`, the effects
are :math:`\hat u = \Gamma^{1/2} v`, and twice the negative restricted log-likelihood, profiled over :math:`\sigma^2`,
is

.. math:: \nu \log R - \log |B|, \quad R = x'Mx - c'\hat u,

with :math:`\nu` the number of rows less the columns of F. Its derivatives in :math:`\theta_t = \log \gamma_t` are

.. math::
    g_t = L_t - \operatorname{tr} B_{tt} - \nu |v_t|^2 / R, \quad
    H_{ts} = - |B_{ts}|^2 - \nu \left(2 v_t' B_{ts} v_s / R + |v_t|^2 |v_s|^2 / R^2\right)
    + \delta_{ts} (\operatorname{tr} B_{tt} + \nu |v_t|^2 / R).

References
----------
Patterson and Thompson, Biometrika 58, 1971. Wood, "Fast stable restricted maximum likelihood and marginal likelihood
estimation of semiparametric generalized linear models", JRSS B 73, 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.effects.random.one import variance_ratio

__all__ = ["Solved", "chunks", "inverse", "known_noise_ratios", "membership", "solved", "variance_ratios"]

Array = NDArray[np.float64]

# Logarithms of a variance ratio that are looked at, relative to the rows behind a typical effect.
_LOWEST, _HIGHEST = -18.0, 23.0
# Numbers in the matrices of the features that are worked on at once.
_AT_ONCE = 1 << 21
_NONE = float(np.finfo(np.float64).tiny)
_MAX_STEPS = 200
# Far below the typical ratio, where a term hardly has a say any more: is it better without?
_FAINT = -6.0


@dataclass(frozen=True)
class Solved:
    """Effects given their variance ratios.

    Attributes
    ----------
    effects : ndarray (r, d)
    rest : ndarray (d,)
        R: squares of the residuals and, by their ratios, of the effects.
    penalty : ndarray (d,)
        Part of R that comes from the penalty.
    kept : ndarray (t, d)
        By group, effective degrees of freedom :math:`L_t - tr B_{tt}`.
    reference : ndarray (t, d)
        :math:`L_t - \\sum_{i \\in t} \\sum_j B_{ij}^2`, the reference degrees of freedom of a test.
    """

    effects: Array
    rest: Array
    penalty: Array
    kept: Array
    reference: Array


def known_noise_ratios(
    own: Array, turned: Array, parts: list[slice], begin: Array | None = None, steps: int = _MAX_STEPS
) -> Array:
    r"""Return the REML estimates (t, d) of :math:`\gamma_t` where :math:`\sigma^2 = 1` is known.

    Twice the negative restricted log-likelihood is then :math:`R - \log |B|`. It is minimised from `begin`, in a
    limited number of steps.
    """
    found = np.full((len(parts), turned.shape[1]), _NONE)
    for at in chunks(turned.shape):
        found[:, at] = (
            _Climb(own if len(own) == 1 else own[at], turned[:, at].T, None, None, parts)
            .run(None if begin is None else begin[:, at].T, steps)
            .T
        )
    return found


def variance_ratios(own: Array, turned: Array, total: Array, degrees: Array, parts: list[slice]) -> Array:
    r"""Return the REML estimates (t, d) of :math:`\gamma_t`; a tiny number stands for 0.

    Parameters
    ----------
    own : ndarray (g, r, r)
        G; g is 1, or d where each feature has its own.
    turned : ndarray (r, d)
        c.
    total, degrees : ndarray (d,)
        x'Mx and :math:`\nu`.
    parts : list of slice
        Where the groups lie in r.
    """
    found = np.full((len(parts), turned.shape[1]), _NONE)
    if len(parts) == 1:
        found[0] = _one_ratio(own, turned, total, degrees)
        return found
    for at in chunks(turned.shape):
        G = own if len(own) == 1 else own[at]
        found[:, at] = _Climb(G, turned[:, at].T, total[at], degrees[at], parts).run().T
    return found


def solved(own: Array, turned: Array, total: Array, ratios: Array, parts: list[slice]) -> Solved:
    """Return the effects given their ratios (t, d); the rest as for `variance_ratios`."""
    r, d = turned.shape
    effects, rest, penalty = np.empty((r, d)), np.empty(d), np.empty(d)
    kept, reference = np.empty((2, len(parts), d))
    member = membership(parts)
    for at in chunks(turned.shape):
        root = np.sqrt(member @ ratios[:, at]).T  # (c, r)
        B, _ = inverse(own if len(own) == 1 else own[at], root)
        scaled = root * turned[:, at].T
        v = np.einsum("cij,cj->ci", B, scaled)
        effects[:, at] = (root * v).T
        rest[at] = np.maximum(total[at] - np.einsum("ci,ci->c", scaled, v), 1e-15 * total[at])
        penalty[at] = np.einsum("ci,ci->c", v, v)
        kept[:, at] = member.T @ (1.0 - np.einsum("cii->ci", B)).T
        reference[:, at] = member.T @ (1.0 - np.einsum("cij,cij->ci", B, B)).T
    return Solved(effects, rest, penalty, kept, reference)


def membership(parts: list[slice]) -> Array:
    """Return indicators (r, t) of the groups."""
    member = np.zeros((parts[-1].stop if parts else 0, len(parts)))
    for t, part in enumerate(parts):
        member[part, t] = 1.0
    return member


def chunks(shape: tuple[int, int]) -> list[slice]:
    """Return slices of the d features, whose (r, r) matrices are computed at the same time."""
    r, d = shape
    size = max(1, _AT_ONCE // max(r * r, 1))
    return [slice(start, min(start + size, d)) for start in range(0, d, size)]


def inverse(own: Array, root: Array) -> tuple[Array, Array]:
    """Return B (c, r, r), and minus its log determinant."""
    A = root[:, :, None] * own * root[:, None, :]
    np.einsum("cii->ci", A)[...] += 1.0
    try:
        factor = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        # with more columns than rows, large ratios make rounding of G exceed the identity
        values, vectors = np.linalg.eigh(A)
        values = np.maximum(values, 1.0)
        return (vectors / values[:, None, :]) @ np.swapaxes(vectors, 1, 2), np.log(values).sum(axis=1)
    inverse: Array = np.linalg.inv(A).astype(np.float64, copy=False)
    return inverse, 2.0 * np.log(np.einsum("cii->ci", factor)).sum(axis=1)


def _one_ratio(own: Array, turned: Array, total: Array, degrees: Array) -> Array:
    """Return the ratios (d,) of one group, for which G is diagonalised once."""
    found = np.empty(len(total))
    for g, G in enumerate(own):
        mine = slice(None) if len(own) == 1 else slice(g, g + 1)
        values, vectors = np.linalg.eigh(G)
        keep = values > 1e-12 * np.max(values, initial=0.0)
        size = (vectors[:, keep].T @ turned[:, mine]) ** 2 / values[keep][:, None]
        left = np.maximum(total[mine] - size.sum(axis=0), 0.0)
        found[mine] = variance_ratio(values[keep], size, left, degrees[mine] - np.count_nonzero(keep))
    return found


class _Climb:
    """Newton's method on log ratios for several features; each has its own steps.

    Without `total` and `degrees` the noise is known to have variance 1.
    """

    def __init__(
        self, own: Array, turned: Array, total: Array | None, degrees: Array | None, parts: list[slice]
    ) -> None:
        self.known = total is None or degrees is None
        self.total = np.ones(len(turned)) if total is None else total
        self.degrees = np.ones(len(turned)) if degrees is None else degrees
        self.own, self.turned = own, turned
        self.member, self.size = membership(parts), np.array([part.stop - part.start for part in parts], dtype=float)
        typical = np.einsum("gii->gi", own) @ self.member / self.size
        self.typical = np.where(typical > 0, typical, 1.0)
        self.there = np.broadcast_to(typical > 0, (len(turned), len(parts)))
        self.usable = (self.degrees > 0) & (self.total > 0)

    def run(self, begin: Array | None = None, steps: int = _MAX_STEPS) -> Array:
        """Return the ratios (c, t)."""
        start = 0.0 if begin is None else np.clip(np.log(begin * self.typical), _FAINT, _HIGHEST)
        theta = np.where(self.there, start, _LOWEST)
        value, g, H = self._at(np.arange(len(theta)), theta)
        # down to the lowest ratio at once, but once only
        fresh = np.ones(theta.shape, dtype=bool)
        active = np.flatnonzero(self.usable)
        step = self._step(theta[active], g[active], H[active], fresh, active)
        for _ in range(steps):
            moving = np.abs(step).max(axis=1, initial=0.0) > 1e-10
            active, step = active[moving], step[moving]
            if not len(active):
                break
            trial = np.clip(theta[active] + step, _LOWEST, _HIGHEST)
            found = self._at(active, trial)
            better = found[0] <= value[active] + 1e-13 * (np.abs(value[active]) + self.degrees[active])
            took = active[better]
            theta[took], value[took], g[took], H[took] = trial[better], *(part[better] for part in found)
            step[~better] *= 0.25
            step[better] = self._step(theta[took], g[took], H[took], fresh, took)
        none = ~self.there | ~self.usable[:, None] | ((theta <= _LOWEST) & (g >= 0))
        return np.where(none, _NONE, np.exp(theta) / self.typical)

    def _at(self, rows: NDArray[np.intp], theta: Array) -> tuple[Array, Array, Array]:
        """Return the deviance of some features, its slope (c, t) and its curvature (c, t, t)."""
        several = len(self.own) > 1
        typical = self.typical[rows] if several else self.typical
        root = np.sqrt(np.exp(theta) / typical) @ self.member.T
        B, size = inverse(self.own[rows] if several else self.own, root)
        scaled = root * self.turned[rows]
        v = np.einsum("cij,cj->ci", B, scaled)
        total, nu = np.where(self.usable[rows], self.total[rows], 1.0), self.degrees[rows][:, None]
        # without this floor a feature that its effects explain exactly has no optimum
        explained = np.einsum("ci,ci->c", scaled, v)
        rest = np.ones(len(v)) if self.known else np.maximum(total - explained, 1e-15 * total)
        kept, q = np.einsum("cii->ci", B) @ self.member, (v**2) @ self.member / rest[:, None]
        pairs = -(B**2) - 2.0 * (nu / rest[:, None])[:, :, None] * v[:, :, None] * B * v[:, None, :]
        H = self.member.T @ pairs @ self.member
        np.einsum("ctt->ct", H)[...] += kept + nu * q
        if self.known:
            return size - explained, self.size - kept - q, H
        H -= nu[:, :, None] * q[:, :, None] * q[:, None, :]
        return nu[:, 0] * np.log(rest / total) + size, self.size - kept - nu * q, H

    def _step(self, theta: Array, g: Array, H: Array, fresh: NDArray[np.bool_], rows: NDArray[np.intp]) -> Array:
        """Return Newton's step where the deviance is convex, else a downhill step of the same length."""
        if not len(theta):
            return theta
        held = ((theta <= _LOWEST) & (g >= 0)) | ((theta >= _HIGHEST) & (g <= 0)) | ~self.there[rows]
        free = ~held
        g = np.where(held, 0.0, g)
        H = np.where(free[:, :, None] & free[:, None, :], H, 0.0)
        np.einsum("ctt->ct", H)[...] += held
        values, vectors = np.linalg.eigh(H)
        along = np.einsum("cij,ci->cj", vectors, g) / np.maximum(np.abs(values), 1e-10)
        step = -np.einsum("cij,cj->ci", vectors, along)
        step *= np.minimum(1.0, 4.0 / np.maximum(np.abs(step).max(axis=1, initial=0.0), 1e-300))[:, None]
        faint = (theta < _FAINT) & (g > 0) & fresh[rows]
        fresh[rows] &= ~faint
        jumps = faint.any(axis=1, keepdims=True)
        return np.where(jumps, np.where(faint, _LOWEST - theta, 0.0), step)
