r"""Data thinning: two independent tables from one, to find clusters and to test them.

With noise Z of the rows' own covariance :math:`\Sigma` about their cluster's mean, and a share s,

.. math:: X_1 = s X + \sqrt{s (1 - s)} Z, \qquad X_2 = X - X_1

are independent normal rows with means :math:`s \mu` and :math:`(1 - s) \mu` (Rasines & Young 2023, "Splitting
strategies for post-selection inference", Biometrika 110; Neufeld, Dharamshi, Gao & Witten 2024, "Data thinning for
convolution-closed distributions", J. Mach. Learn. Res. 25). So clusters found on the first are independent of the noise
of the second.

:math:`\Sigma` must be estimated. That of all rows together is too large along the directions in which clusters differ,
and right for a feature in which they don't: the covariance between the parts is proportional to the difference, which
has zeros in that feature's row. So tests keep their level, and lose power only.

Noise of the estimate itself would resemble the rows more than noise of :math:`\Sigma` does: the products of X_1 and X_2
vary less than those of independent parts, and tests find half of the false positives that they may. So the noise has a
covariance that is drawn from what the rows tell of :math:`\Sigma`, an inverse Wishart distribution about the estimate
with its degrees of freedom. Of normal rows without clusters, with A the scatter of the rows and B that of noise, the
eigenvalues of :math:`A^{-1} B` are then distributed as with :math:`\Sigma` known, and so is all that doesn't depend on
a linear map of the features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.errors import unnoted
from residmix.mixture.gaussian import GaussianMixture

__all__ = ["noise_stream", "plausible", "thinned", "units", "within_covariance"]

Floats = NDArray[np.float64]

# Tells the noise's numbers from those of others with the same seed.
STREAM = 0x7A15E
# Numbers of clusters that the covariance within clusters is estimated with.
MOST = 9
# Rows for each parameter of a mixture that is tried.
ROWS_EACH = 5


def noise_stream(random_state: int) -> np.random.Generator:
    """Return random numbers of its own: a table that was simulated with the same seed would be its own noise."""
    return np.random.default_rng([random_state, STREAM])


def plausible(covariance: Floats, degrees: float, random: np.random.Generator) -> Floats:
    """Draw a covariance that rows of so many degrees of freedom, whose estimate is `covariance`, may come from.

    The estimate itself if the degrees of freedom are no more than the features.
    """
    d = len(covariance)
    if degrees <= d:
        return covariance
    # Bartlett's decomposition of a Wishart matrix W = T T'; then L inv(T)' inv(T) L' with the scatter L L'
    lower = np.tril(random.standard_normal((d, d)), -1)
    lower[np.diag_indices(d)] = np.sqrt(random.chisquare(degrees - np.arange(d)))
    half = np.linalg.solve(lower, _root(covariance * degrees).T)
    return np.asarray(half.T @ half)


def thinned(X: Floats, covariance: Floats, share: float, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the two parts, both in the units of X: divided by their shares."""
    noise = random.standard_normal(X.shape) @ _root(covariance).T * np.sqrt((1 - share) / share)
    return X + noise, X - noise * share / (1 - share)


def _root(covariance: Floats) -> Floats:
    """Return a matrix R with R R' the covariance: in units of the standard deviations the symmetric one, which rounding
    doesn't turn about.
    """
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    unit = np.where(spread > 0, spread, 1.0)
    values, vectors = np.linalg.eigh(covariance / unit / unit[:, None])
    return np.asarray(unit[:, None] * ((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T))


def units(X: Floats) -> Floats:
    """Return the features' standard deviations, 1 where there is none."""
    spread = X.std(axis=0)
    return np.where(spread > 0, spread, 1.0)


def within_covariance(X: Floats, random_state: int) -> tuple[Floats, int]:
    """Return the covariance within clusters, and their number.

    It is that of a mixture with one covariance, of as many components as the BIC asks for. Where there are no clusters
    that is one, and the covariance is that of all rows. What the mixture adds to covariances is in units of the
    features' spreads.
    """
    d, unit = X.shape[1], units(X)
    most = max(min(MOST, len(X) // (ROWS_EACH * (d + 1))), 1)
    model = GaussianMixture(list(range(1, most + 1)), covariance_type="tied", random_state=random_state)
    with unnoted():
        model.fit(X / unit)
    K = model.n_components_
    # maximum likelihood divides by n; K means were estimated
    return np.asarray(model.covariances_ * len(X) / max(len(X) - K, 1)) * unit * unit[:, None], K
