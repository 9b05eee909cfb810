r"""Many mixtures on few rows: log-densities and moments as two products with the rows' squares.

With :math:`q(y) = (1, y_1, ..., y_d, y_1 y_1, y_1 y_2, ..., y_d y_d)` a log-density is linear,

.. math:: \log \pi_k N(y \mid \mu_k, \Sigma_k) = c_k + (P_k \mu_k)' y - \frac12 y' P_k y, \quad P_k = \Sigma_k^{-1},

and the moments of all components are one product, :math:`R' q(y)`. That is a tenth of the time of the loops where tens
of mixtures go side by side. Moments are about the origin of y: for rows that lie about it and aren't far out, in units
of their spread, and for nothing but the search for starts. There a dozen digits are left of sixteen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.iteration.estep import LOG_2PI, MixtureMoments
from residmix.mixture.params import MixtureParams

__all__ = ["QuadraticRows"]

Floats = NDArray[np.float64]

# Numbers, components x rows, that are worked on at a time: they stay in a cache.
AT_ONCE = 1 << 16
# The log-density, beside a row's largest one, whose share is as good as 0; exp of less is slow.
VANISHED = -700.0


@dataclass(frozen=True)
class QuadraticRows:
    """Rows as their squares.

    Attributes
    ----------
    features : ndarray (n, 1 + d + d (d + 1) / 2), or (n, 1 + 2 d) for diagonal covariances
    weight : ndarray (n,) or None
    n_features : int
    diagonal : bool
    above, below : ndarray (d (d + 1) / 2,)
        Which entries of a matrix its products stand for.
    total : float
        Sum of the weights.
    """

    features: Floats
    weight: Floats | None
    n_features: int
    diagonal: bool
    above: NDArray[np.intp]
    below: NDArray[np.intp]
    total: float

    @classmethod
    def of(cls, y: Floats, w: Floats, *, diagonal: bool) -> QuadraticRows:
        """Return rows y (n, d) of weights w (n,)."""
        n, d = y.shape
        above, below = (np.arange(d), np.arange(d)) if diagonal else np.triu_indices(d)
        features = np.concatenate([np.ones((n, 1)), y, y[:, above] * y[:, below]], axis=1)
        return cls(features, None if (w == 1).all() else w, d, diagonal, above, below, float(w.sum()))

    @property
    def n_rows(self) -> int:
        return len(self.features)

    def moments(self, params: MixtureParams, runs: int) -> MixtureMoments:
        """Return the moments of mixtures, `runs` of as many components each, and their log-likelihoods (runs,)."""
        log_likelihood, sums = self._sums(self._coefficients(params), runs)
        d, means = self.n_features, params.means
        mass, first = sums[:, 0], sums[:, 1 : d + 1]
        shift = first - mass[:, None] * means
        if self.diagonal:
            scatter = sums[:, d + 1 :] - means * (first + shift)
        else:
            scatter = self._matrices(sums[:, d + 1 :])
            # of S - m s' - s m' + N m m' with s - N m the shift
            scatter -= means[:, :, None] * first[:, None, :] + shift[:, :, None] * means[:, None, :]
        return MixtureMoments(mass, shift, scatter, log_likelihood, self.total, self.n_rows)  # type: ignore[arg-type]

    def clusters(self, labels: NDArray[np.int64], K: int) -> tuple[Floats, Floats, Floats]:
        """Return weights (runs, K), means (runs, K, d) and scatters about them of several clusterings (runs, n)."""
        share = (labels[:, None] == np.arange(K)[:, None]).astype(np.float64)
        if self.weight is not None:
            share *= self.weight
        d, runs = self.n_features, len(labels)
        sums = share.reshape(runs * K, -1) @ self.features
        mass = sums[:, 0]
        means = sums[:, 1 : d + 1] / np.where(mass > 0, mass, 1.0)[:, None]
        products = sums[:, d + 1 :] - mass[:, None] * means[:, self.above] * means[:, self.below]
        if not self.diagonal:
            products = self._matrices(products)
        return mass.reshape(runs, K), means.reshape(runs, K, d), products.reshape(runs, K, *products.shape[1:])

    def _matrices(self, products: Floats) -> Floats:
        """Return products (C, d (d + 1) / 2) as symmetric matrices."""
        full = np.empty((len(products), self.n_features, self.n_features))
        full[:, self.above, self.below] = full[:, self.below, self.above] = products
        return full

    def _coefficients(self, params: MixtureParams) -> Floats:
        """Return the log-densities of the components as coefficients of the features (C, q)."""
        means, factors, d = params.means, params.factors, self.n_features
        out = np.empty((len(means), self.features.shape[1]))
        if self.diagonal:
            precision = np.broadcast_to(params.family.diagonals(factors) ** 2, means.shape)
            out[:, d + 1 :] = -0.5 * precision
            linear = precision * means
        else:
            precision = factors @ factors.swapaxes(1, 2)
            twice = np.where(self.above == self.below, -0.5, -1.0)
            np.multiply(precision[:, self.above, self.below], twice, out=out[:, d + 1 :])
            linear = (precision @ means[:, :, None])[:, :, 0]
        out[:, 1 : d + 1] = linear
        out[:, 0] = params.log_weights + params.log_det - 0.5 * (d * LOG_2PI + np.einsum("kj,kj->k", linear, means))
        return out

    def _sums(self, coefficients: Floats, runs: int) -> tuple[Floats, Floats]:
        """Return log-likelihoods (runs,) and the sums of features by shares (C, q)."""
        C, n = len(coefficients), self.n_rows
        log_likelihood, sums = np.zeros(runs), np.zeros(coefficients.shape)
        step = max(256, AT_ONCE // C)
        for begin in range(0, n, step):
            tile = self.features[begin : begin + step]
            shares = (coefficients @ tile.T).reshape(runs, C // runs, len(tile))
            top = shares.max(axis=1)
            shares -= top[:, None]
            np.exp(np.maximum(shares, VANISHED, out=shares), out=shares)
            total = shares.sum(axis=1)
            logs = top + np.log(total)
            if self.weight is None:
                shares /= total[:, None]
                log_likelihood += logs.sum(axis=1)
            else:
                weight = self.weight[begin : begin + step]
                shares *= (weight / total)[:, None]
                log_likelihood += logs @ weight
            sums += shares.reshape(C, -1) @ tile
        return log_likelihood, sums
