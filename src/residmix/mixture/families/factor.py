r"""Factor-analytic covariances, :math:`\Sigma_k = \Lambda_k \Lambda_k' + \Psi_k`: few factors, unique variances.

:math:`\Lambda_k` (d, q) are loadings, :math:`\Psi_k` is diagonal: a mixture of factor analysers (Ghahramani & Hinton
1996; McLachlan & Peel 2000, "Mixtures of factor analyzers", ICML), for more features than full covariances can be
estimated of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize

from residmix.mixture.families.structure import Family

__all__ = ["FactorFamily", "aligned", "composed", "most_factors"]

Floats = NDArray[np.float64]

# Steps of the variances in an M-step, in the first one, and in taking a covariance apart; and when these end.
ROUNDS = 10
FIRST = 30
APART = 2000
SETTLED = 1e-13
# Features up to which all eigenvectors are as quick as some.
SMALL = 40
# A feature's own variance stays above this share of its variance.
HEYWOOD = 1e-6


def most_factors(n_features: int) -> int:
    """Return the largest identifiable number of factors: (d - q)^2 >= d + q (Ledermann 1937)."""
    d = n_features
    return max(1, math.floor((2 * d + 1 - math.sqrt(8 * d + 1)) / 2 + 1e-9))


@dataclass(frozen=True)
class FactorFamily(Family):
    """Mixtures of factor analysers with `n_factors` factors in each component.

    `parts` (K, d, q + 1) hold the loadings and, last, the square roots of the unique variances of the features.
    """

    volume: str = "V"
    shape: str = "V"
    orientation: str = "V"
    n_factors: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for fact, value in {"name": f"factor-{self.n_factors}", "free": False, "affine": False}.items():
            object.__setattr__(self, fact, value)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Return K (d q + d - q (q - 1) / 2): loadings count up to a rotation."""
        d, q = n_features, min(self.n_factors, n_features)
        return n_components * (d * q + d - q * (q - 1) // 2)

    def rows_needed(self, n_features: int) -> int:
        """Return how many rows a component needs."""
        return min(self.n_factors, n_features) + 2

    def fit(self, W: Floats, n: Floats, previous: Floats | None = None) -> Floats:
        """Return the covariances that `fit_parts` leads to, begun anew."""
        return composed(self.fit_parts(W, None, APART))

    def fit_with_parts(
        self, W: Floats, n: Floats, previous: Floats | None = None, parts: Floats | None = None
    ) -> tuple[Floats, Floats | None]:
        """Return the covariances of the new parts, and these."""
        found = self.fit_parts(W, parts, FIRST if parts is None else ROUNDS)
        return composed(found), found

    def fit_parts(self, W: Floats, parts: Floats | None, rounds: int = ROUNDS) -> Floats:
        r"""Return parts of smaller :math:`\log |\Sigma_k| + tr \Sigma_k^{-1} W_k` than those given, for each k.

        Given :math:`\Psi` the loadings are exact: of :math:`\Psi^{-1/2} W \Psi^{-1/2}` the q largest eigenvalues
        :math:`\theta` above 1 and their vectors U make :math:`\Psi^{1/2} U (\theta - 1)^{1/2}` (Lawley 1940). What is
        left is a function of the variances alone, :math:`\sum_i (\log \psi_i + w_{ii} / \psi_i) + \sum_j (\log
        \theta_j - \theta_j + 1)` with the gradient :math:`(\psi_i + (\Lambda \Lambda')_{ii} - w_{ii}) / \psi_i` for
        :math:`\log \psi_i` (Joreskog 1967, "Some contributions to maximum likelihood factor analysis", Psychometrika
        32), which a quasi-Newton method lowers.

        Parameters
        ----------
        W : ndarray (K, d, d)
        parts : ndarray (K, d, q + 1), optional
        rounds : int
            Of the quasi-Newton method, at most.
        """
        return np.stack([self._fitted(w, None if parts is None else parts[k], rounds) for k, w in enumerate(W)])

    def _fitted(self, w: Floats, parts: Floats | None, rounds: int) -> Floats:
        d = len(w)
        q, variances = min(self.n_factors, d), np.diagonal(w)
        if not (np.isfinite(w).all() and (variances > 0).all()):
            return np.full((d, q + 1), np.nan)
        own = 0.5 * variances if parts is None else parts[:, -1] ** 2
        floor = np.log(np.minimum(own, HEYWOOD * variances))

        def loss(logs: Floats) -> tuple[float, Floats]:
            loadings, values = _loadings(w, np.exp(logs), q)
            own = np.exp(logs)
            cost = logs.sum() + (variances / own).sum() + (np.log(values) - values + 1.0).sum()
            return float(cost), 1.0 + ((loadings**2).sum(axis=1) - variances) / own

        # no variance is more than all of the feature's at the minimum
        bounds = np.column_stack([floor, np.log(np.maximum(own, 2.0 * variances))])
        options = {"maxiter": rounds, "maxcor": 20, "gtol": SETTLED, "ftol": SETTLED}
        found = minimize(loss, np.log(own), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        own = np.exp(found.x)
        return np.column_stack([_loadings(w, own, q)[0], np.sqrt(own)])


def _loadings(w: Floats, own: Floats, q: int) -> tuple[Floats, Floats]:
    """Return the likeliest loadings (d, q) given variances, and the eigenvalues, at least 1, that they come from."""
    root, d = np.sqrt(own), len(own)
    scaled = w / root / root[:, None]
    if d < SMALL:
        values, vectors = np.linalg.eigh(scaled)
        values, vectors = values[d - q :], vectors[:, d - q :]
    else:
        values, vectors = eigh(scaled, subset_by_index=(d - q, d - 1), check_finite=False)
    values = np.maximum(values[::-1], 1.0)
    return root[:, None] * vectors[:, ::-1] * np.sqrt(values - 1.0), values


def composed(parts: Floats) -> Floats:
    """Return the covariances (K, d, d) of parts (K, d, q + 1)."""
    loadings, own = parts[..., :-1], parts[..., -1]
    return loadings @ loadings.swapaxes(1, 2) + own[:, :, None] ** 2 * np.eye(own.shape[1])


def aligned(parts: Floats, like: Floats) -> Floats:
    """Return the same parts with loadings turned as near to those of `like` as they get (Procrustes)."""
    loadings = parts[..., :-1]
    left, _, right = np.linalg.svd(loadings.swapaxes(1, 2) @ like[..., :-1])
    return np.concatenate([loadings @ (left @ right), parts[..., -1:]], axis=2)
