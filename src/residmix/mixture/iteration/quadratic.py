r"""Many mixtures on few rows: log-densities and moments as two products with the rows' squares.

With :math:`q(y) = (1, y_1, ..., y_d, y_1 y_1, y_1 y_2, ..., y_d y_d)` a log-density is linear,

.. math:: \log \pi_k N(y \mid \mu_k, \Sigma_k) = c_k + (P_k \mu_k)' y - \frac12 y' P_k y, \quad P_k = \Sigma_k^{-1},

and the moments of all components are one product, :math:`R' q(y)`. That is a tenth of the time of the loops where tens
of mixtures go side by side. Moments are about the origin of y: for rows that lie about it and aren't far out, in units
of their spread, and for nothing but the search for starts. There a dozen digits are left of sixteen. What is added to
the covariances sets how narrow a component can be, and so what is lost: nothing here is for covariances without it.

Components lie along the last axis of every array, so that an operation on small matrices is one on long vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import inverted
from residmix.mixture.iteration.estep import LOG_2PI
from residmix.rows.scratch import scratch

__all__ = ["QuadraticRows"]

Floats = NDArray[np.float64]

# Numbers, components x rows, that are worked on at a time: they stay in a cache.
AT_ONCE = 1 << 16
# The log-density, beside a row's largest one, whose share is as good as 0; exp of less is slow.
VANISHED = -700.0


@lru_cache(maxsize=32)
def _products(d: int, diagonal: bool) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return `above`, `below`, `place` and `twice` of :class:`QuadraticRows`."""
    above, below = (np.arange(d), np.arange(d)) if diagonal else np.triu_indices(d)
    place = np.empty((d, d), dtype=np.intp)
    place[above, below] = place[below, above] = d + np.arange(len(above))
    return above, below, place, np.where(above == below, -0.5, -1.0)[:, None]


@dataclass(frozen=True)
class QuadraticRows:
    """Rows as their squares.

    Attributes
    ----------
    features : ndarray (q, n)
        q is 1 + d + d (d + 1) / 2, or 1 + 2 d for diagonal covariances.
    weight : ndarray (n,) or None
    n_features : int
    diagonal : bool
    above, below : ndarray (d (d + 1) / 2,)
        Which entries of a matrix its products stand for.
    place : ndarray (d, d)
        Where a matrix finds its entries, from the first feature after the 1.
    twice : ndarray (d (d + 1) / 2, 1)
        Factors of the products in a density: those off the diagonal stand for two.
    total : float
        Sum of the weights.
    """

    features: Floats
    weight: Floats | None
    n_features: int
    diagonal: bool
    above: NDArray[np.intp]
    below: NDArray[np.intp]
    place: NDArray[np.intp]
    twice: Floats
    total: float

    @classmethod
    def of(cls, y: Floats, w: Floats, *, diagonal: bool) -> QuadraticRows:
        """Return rows y (n, d) of weights w (n,)."""
        (n, d), (above, below, place, twice) = y.shape, _products(y.shape[1], diagonal)
        features = scratch((1 + d + len(above), n), np.float64)
        features[0] = 1.0
        columns = features[1 : d + 1]
        columns[...] = y.T
        if diagonal:
            np.multiply(columns, columns, out=features[d + 1 :])
        else:
            first = d + 1
            for j in range(d):  # without the copies that all pairs at once would take
                np.multiply(columns[j], columns[j:], out=features[first : first + d - j])
                first += d - j
        weight = None if (w == 1).all() else w
        return cls(features, weight, d, diagonal, above, below, place, twice, float(w.sum()))

    @property
    def n_rows(self) -> int:
        return int(self.features.shape[1])

    def sums(self, coefficients: Floats, runs: int) -> tuple[Floats, Floats]:
        """Return log-likelihoods (runs,) and the sums of features by shares (q, C); of densities as `coefficients`
        make them, `runs` of as many components each.
        """
        C, n = coefficients.shape[1], self.n_rows
        step = max(256, AT_ONCE // C)
        log_likelihood, sums = self._tile(coefficients, runs, slice(0, step))
        for begin in range(step, n, step):
            more = self._tile(coefficients, runs, slice(begin, begin + step))
            log_likelihood += more[0]
            sums += more[1]
        return log_likelihood, sums

    def _tile(self, coefficients: Floats, runs: int, rows: slice) -> tuple[Floats, Floats]:
        tile = self.features[:, rows]
        each = scratch((coefficients.shape[1], tile.shape[1]), np.float64)
        np.matmul(coefficients.T, tile, out=each)
        shares = each.reshape(runs, len(each) // runs, -1)
        top = shares.max(axis=1)
        shares -= top[:, None]
        np.exp(np.maximum(each, VANISHED, out=each), out=each)
        total = shares.sum(axis=1)
        top += np.log(total)
        if self.weight is None:
            shares /= total[:, None]
            return top.sum(axis=1), tile @ each.T
        shares *= (self.weight[rows] / total)[:, None]
        return top @ self.weight[rows], tile @ each.T

    def moments(self, sums: Floats) -> tuple[Floats, Floats, Floats]:
        """Return weights (C,), means (d, C) and covariances (d, d, C), or variances (d, C), of components."""
        d, mass = self.n_features, sums[0]
        mean = sums[1:] / (mass if mass.min() > 0 else np.where(mass > 0, mass, 1.0))
        means = mean[:d]
        if self.diagonal:
            return mass, means, mean[d:] - means * means
        return mass, means, mean[self.place] - means[:, None] * means

    def of_clusters(self, labels: NDArray[np.int64], K: int) -> Floats:
        """Return the sums of features (q, runs K) by clusters, of several clusterings (runs, n)."""
        share = (labels[:, None] == np.arange(K)[:, None]).astype(np.float64)
        if self.weight is not None:
            share *= self.weight
        return np.asarray(self.features @ share.reshape(-1, self.n_rows).T)

    def coefficients(self, weights: Floats, means: Floats, covariances: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Return log-densities as coefficients of the features (q, C), and of which components there are any (C,).

        Parameters
        ----------
        weights : ndarray (C,)
        means : ndarray (d, C)
        covariances : ndarray (d, d, C), or (d, C) if diagonal
        """
        d, out = self.n_features, np.empty((len(self.features), len(weights)))
        with np.errstate(all="ignore"):
            if self.diagonal:
                precision, pivots = 1.0 / covariances, covariances
                np.multiply(precision, -0.5, out=out[d + 1 :])
                linear = precision * means
            else:
                precision, pivots = inverted(covariances)
                np.multiply(precision[self.above, self.below], self.twice, out=out[d + 1 :])
                linear = (precision * means).sum(axis=1)
            out[1 : d + 1] = linear
            linear *= means
            linear += np.log(pivots)
            out[0] = np.log(weights) - 0.5 * linear.sum(axis=0) - 0.5 * d * LOG_2PI
        return out, np.asarray((pivots.min(axis=0) > 0) & (pivots.max(axis=0) < np.inf))
