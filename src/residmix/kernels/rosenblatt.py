r"""Rosenblatt's transform of a Gaussian mixture a row, and its inverse.

.. math::

    z_j = \Phi^{-1}\bigl(F_j(x_j \mid x_{<j})\bigr), \qquad
    F_j = \sum_k r_{kj} \Phi(e_{kj}), \quad e_k = L_k^{-1} (x - \mu_k), \quad
    r_{kj} \propto \pi_k \prod_{i<j} \phi(e_{ki}) / L_{k,ii}

Scores are computed from the smaller tail, on its logarithm where it is below double precision, so that a row a million
standard deviations away has finite scores, and comes back.

Both functions have compiled loops beside them, see `residmix.kernels.pairs`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import log_ndtr, ndtri_exp

__all__ = ["MOST_STEPS", "NEAR", "NOISE", "rows_of_scores", "scores_of_rows"]

Floats = NDArray[np.float64]

# A bracket that Newton's steps leave, or don't narrow, is halved; 200 halvings exhaust double precision from any width.
MOST_STEPS = 200
# Scores are known to about NOISE (of one, or of their size); roots to NEAR of theirs. Steps beyond that find nothing.
NOISE, NEAR = 4e-16, 1e-15


def scores_of_rows(
    x: Floats, log_weights: Floats, means: Floats, factors: Floats, group: NDArray[np.int64], spread: Floats
) -> Floats:
    """Return the standard normal scores z (n, d) of rows x (n, d).

    Parameters
    ----------
    x : ndarray (n, d)
    log_weights : ndarray (n, K)
    means : ndarray (n, K, d)
    factors : ndarray (G, K, d, d)
        Lower Cholesky factors of the covariances, by group of rows.
    group : ndarray of int (n,)
    spread : ndarray (n, K, d)
        What multiplies a factor's rows.
    """
    z = np.empty(x.shape)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        z[rows] = _forward(x[rows], log_weights[rows], means[rows], factors[g], spread[rows])
    return z


def rows_of_scores(
    z: Floats, log_weights: Floats, means: Floats, factors: Floats, group: NDArray[np.int64], spread: Floats
) -> Floats:
    """Return the rows x (n, d) whose scores are z (n, d): the inverse of `scores_of_rows`, whose arguments it takes."""
    x = np.empty(z.shape)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        x[rows] = _backward(z[rows], log_weights[rows], means[rows], factors[g], spread[rows])
    return x


def _forward(x: Floats, log_weights: Floats, means: Floats, factors: Floats, spread: Floats) -> Floats:
    n, K, d = means.shape
    e = np.empty((K, d, n))
    for k in range(K):
        e[k] = solve_triangular(factors[k], ((x - means[:, k]) / spread[:, k]).T, lower=True, check_finite=False)
    if K == 1:
        return np.ascontiguousarray(e[0].T)
    share = log_weights.T.copy()
    z = np.empty((n, d))
    for j in range(d):
        z[:, j] = _score(share, e[:, j])
        share = _given(share, e[:, j], factors[:, j, j][:, None] * spread[:, :, j].T)
    return z


def _backward(z: Floats, log_weights: Floats, means: Floats, factors: Floats, spread: Floats) -> Floats:
    n, K, d = means.shape
    if K == 1:
        return np.asarray(means[:, 0] + spread[:, 0] * (z @ factors[0].T))
    share = log_weights.T.copy()
    e = np.empty((K, d, n))
    x = np.empty((n, d))
    for j in range(d):
        wide = spread[:, :, j].T
        centre = means[:, :, j].T + wide * np.einsum("ki,kin->kn", factors[:, j, :j], e[:, :j])
        own = wide * factors[:, j, j][:, None]
        x[:, j] = _root(z[:, j], share, centre, own)
        e[:, j] = (x[:, j] - centre) / own
        share = _given(share, e[:, j], own)
    return x


def _given(share: Floats, e: Floats, spread: Floats) -> Floats:
    """Return the log shares of the components (K, n), now that one more feature is known."""
    share = share - 0.5 * e * e - np.log(spread)
    return share - _log_sum(share)


def _log_sum(a: Floats) -> Floats:
    top = a.max(axis=0)
    return np.asarray(top + np.log(np.exp(a - top).sum(axis=0)))


def _score(share: Floats, e: Floats) -> Floats:
    """Return the normal score of a mixture of standardised deviations, exact in both tails."""
    below, above = _log_sum(share + log_ndtr(e)), _log_sum(share + log_ndtr(-e))
    tails = ndtri_exp(np.minimum(below, 0.0)), -ndtri_exp(np.minimum(above, 0.0))
    return np.asarray(np.where(below < above, *tails))


def _root(z: Floats, share: Floats, centre: Floats, spread: Floats) -> Floats:
    """Solve score(x) = z: Newton's steps in the scores, within a bracket that always holds the root.

    The quantile of a mixture lies between those of its components. In the scores' scale a single normal is a straight
    line, so that steps are exact far out, where one component rules.
    """
    quantiles = centre + spread * z
    low, high = quantiles.min(axis=0), quantiles.max(axis=0)
    x = (np.exp(share) * quantiles).sum(axis=0).clip(low, high)
    active = np.arange(len(z))
    last, before = high - low, high - low
    for _ in range(MOST_STEPS):
        here, s, c, own = x[active], share[:, active], centre[:, active], spread[:, active]
        e = (here - c) / own
        value = _score(s, e)
        off = value - z[active]
        low[active], high[active] = np.where(off < 0, here, low[active]), np.where(off > 0, here, high[active])
        slope = np.exp(_log_sum(s - 0.5 * e * e - np.log(own)) + 0.5 * value * value)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = here - off / slope
        inside = (step > low[active]) & (step < high[active])
        middle = low[active] + 0.5 * (high[active] - low[active])
        near = np.abs(off) <= NOISE * np.maximum(1.0, np.abs(value))
        move = np.abs(step - here)
        # steps that don't shrink may go to and fro for ever
        shrinks = near | (move <= NEAR * np.abs(here)) | (move <= 0.5 * before[active])
        nearer = np.where(inside & shrinks, step, middle)
        before[active], last[active] = last[active], np.abs(nearer - here)
        x[active] = np.where(near & ~inside, here, nearer)
        active = active[~(near | (np.abs(nearer - here) <= NEAR * np.abs(here)))]
        if not len(active):
            break
    return np.asarray(x)
