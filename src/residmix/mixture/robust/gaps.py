r"""Rows with missing values: densities of observed values and expectations of missing ones, by pattern.

Of component k the values that are there have the density :math:`N(x_o \mid \mu_{ko}, \Sigma_{koo})`, and the others
the mean :math:`\mu_{km} + B_k (x_o - \mu_{ko})` with :math:`B_k = \Sigma_{kmo} \Sigma_{koo}^{-1}`, and the covariance
:math:`\Sigma_{kmm} - B_k \Sigma_{kom}` (Ghahramani & Jordan 1994, "Supervised learning from incomplete data via an EM
approach"; Little & Rubin 2002). This is exact maximum likelihood where values are missing at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from residmix.mixture.params import MixtureParams, make_params
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Pattern", "completed", "patterns", "single_normal", "without_gaps"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Rows with the same missing features.

    Attributes
    ----------
    rows : ndarray of int
    seen, gone : ndarray of int
        Observed and missing features.
    log_det : ndarray (K,)
        Minus half the logarithm of the determinants of the covariances of what is there.
    distance : ndarray (rows, K)
        Squared distances of what is there.
    slopes : ndarray (K, seen, gone)
        Of the missing values on the others.
    rest : ndarray (K, gone, gone)
        Their covariance given the others.
    """

    rows: NDArray[np.intp]
    seen: NDArray[np.intp]
    gone: NDArray[np.intp]
    log_det: Floats
    distance: Floats
    slopes: Floats
    rest: Floats


def patterns(params: MixtureParams, x: Floats, effects: Floats | None = None) -> list[Pattern]:
    """Return the patterns of missing values in rows (b, d), and what components say to them.

    `effects` (K, b, d) are what components take from the rows first, each its own.
    """
    there, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    full, K = params.full_covariances(), params.n_components
    found = []
    for number, pattern in enumerate(there):
        rows, seen, gone = np.flatnonzero(which.ravel() == number), np.flatnonzero(pattern), np.flatnonzero(~pattern)
        log_det, distance = np.zeros(K), np.zeros((len(rows), K))
        slopes, rest = np.zeros((K, len(seen), len(gone))), full[:, gone][:, :, gone].copy()
        for k in range(K if len(seen) else 0):
            root = np.linalg.cholesky(full[k][np.ix_(seen, seen)])
            here = np.ix_(rows, seen)
            own = x[here] if effects is None else x[here] - effects[k][here]
            away = solve_triangular(root, (own - params.means[k, seen]).T, lower=True)
            across = solve_triangular(root, full[k][np.ix_(seen, gone)], lower=True)
            log_det[k] = -np.log(np.diagonal(root)).sum()
            distance[:, k] = np.einsum("ji,ji->i", away, away)
            slopes[k] = solve_triangular(root, across, lower=True, trans=1)
            rest[k] -= across.T @ across
        found.append(Pattern(rows, seen, gone, log_det, distance, slopes, rest))
    return found


def completed(x: Floats, mean: Floats, k: int, found: list[Pattern]) -> Floats:
    """Return the rows less the mean of component k, missing values as it expects them."""
    away = x - mean
    for one in found:
        if one.gone.size:
            away[np.ix_(one.rows, one.gone)] = away[np.ix_(one.rows, one.seen)] @ one.slopes[k]
    return away


def single_normal(x: Floats, w: Floats | None, reg_covar: float) -> MixtureParams:
    """Return one normal component with the means and variances of what is there.

    Raises
    ------
    ValueError
        If a feature has no value at all.
    """
    w = np.ones(len(x)) if w is None else w
    there = ~np.isnan(x) * w[:, None]
    counts = there.sum(axis=0)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise ValueError(
            f"columns {empty[:10].tolist()} have only missing values in the rows used to find starts; leave them out"
        )
    filled = np.where(np.isnan(x), 0.0, x)
    mean = (there * filled).sum(axis=0) / counts
    variance = (there * (filled - mean) ** 2).sum(axis=0) / counts
    variance = np.where(variance > 0, variance, 1.0) + reg_covar
    return make_params(np.ones(1), mean[None], np.diag(variance)[None], "full")


def without_gaps(rows: Rows, params: MixtureParams) -> Rows:
    """Return rows whose missing values are as one normal component expects them: where starts are looked for."""
    return rows.mapped(_Filled(params))


@dataclass(frozen=True)
class _Filled:
    params: MixtureParams

    def __call__(self, block: Block) -> Block:
        x = np.asarray(block.X, dtype=np.float64)
        if not np.isnan(x).any():
            return block
        mean = self.params.means[0]
        return replace(block, X=completed(x, mean, 0, patterns(self.params, x)) + mean)
