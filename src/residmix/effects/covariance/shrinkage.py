"""Covariances of levels, shrunk towards the pooled one, and the maps to the pooled one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import inverse_factor

__all__ = ["divergence", "is_identity", "of_scores", "shrunk", "unit_map", "weights"]

Array = NDArray[np.float64]

# Of a variance: below this share of the pooled one there is nothing to bring anywhere.
_NOTHING = 1e-20


def shrunk(sample: Array, degrees: float) -> Array:
    r"""Return a covariance (K, K) in coordinates in which the pooled one is the identity, shrunk towards that.

    With Z the sample covariance of a level on :math:`\nu` degrees of freedom, :math:`D` its diagonal and
    :math:`O = Z - D`, the estimate is :math:`I + (1 - w_D)(D - I) + (1 - w_O) O` with

    .. math::
        w_D = \min\Big(1, \frac{2 \sum_k Z_{kk}^2 / \nu}{\lVert D - I \rVert^2}\Big), \quad
        w_O = \min\Big(1, \frac{\sum_{k \ne l} (Z_{kk} Z_{ll} + Z_{kl}^2) / \nu}{\lVert O \rVert^2}\Big):

    the expected squared sampling error over the squared distance (Ledoit and Wolf, with the variances of normal rows).
    If :math:`w_O < w_D` both are replaced by the ratio for all entries together, so that the estimate is always
    positive definite.

    References
    ----------
    Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
    Analysis 88 (2004), theorem 3.2. Chen, Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance
    estimation", IEEE Transactions on Signal Processing 58 (2010), for the variances.
    """
    diagonal, (w_d, w_o) = np.diagonal(sample), weights(sample, degrees)
    estimate = (1.0 - w_o) * sample
    np.fill_diagonal(estimate, 1.0 + (1.0 - w_d) * (diagonal - 1.0))
    return np.asarray(estimate)


def weights(sample: Array, degrees: float) -> tuple[float, float]:
    """Return how far variances and covariances are shrunk, :math:`w_D` and :math:`w_O`."""
    if degrees < 1 or len(sample) == 0:
        return 1.0, 1.0
    diagonal = np.diagonal(sample)
    own, all_squares = np.sum(diagonal**2), np.vdot(sample, sample)
    far_d, far_o = np.sum((diagonal - 1.0) ** 2), max(all_squares - own, 0.0)
    noise_d = 2.0 * own / degrees
    noise_o = (np.sum(diagonal) ** 2 - own + far_o) / degrees
    w_d, w_o = _share(noise_d, far_d), _share(noise_o, far_o)
    if w_o < w_d:
        w_d = w_o = _share(noise_d + noise_o, far_d + far_o)
    return w_d, w_o


def _share(noise: float, distance: float) -> float:
    return float(min(1.0, noise / distance)) if distance > 0 else 1.0


def of_scores(variance: Array, pooled: Array, degrees: float) -> Array:
    """Return the factors (K,) that give the scores of a level the pooled variances; Chen et al. (2022), eq. 5."""
    known = (degrees >= 1) & (variance > _NOTHING * pooled) & (pooled > 0)
    return np.sqrt(np.where(known, pooled, 1.0) / np.where(known, variance, 1.0))


def unit_map(matrix: Array) -> Array:
    """Return the lower triangular A with A matrix A' = I, of a positive definite matrix.

    Examples
    --------
    >>> unit_map(np.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
    [[0.5, 0.0], [-0.5, 1.0]]
    """
    return inverse_factor(matrix)


def is_identity(matrix: Array) -> bool:
    """Tell whether a matrix is exactly the identity, as the shrunk covariance of most small levels is."""
    return bool(np.all(np.diagonal(matrix) == 1.0)) and np.count_nonzero(matrix) == len(matrix)


def divergence(matrix: Array) -> float:
    """Return the divergence of N(0, matrix) from N(0, I), in nats per direction."""
    if not len(matrix):
        return 0.0
    try:  # a tenth of the time of eigenvalues, which only singular matrices need
        log_det = 2.0 * np.log(np.diagonal(np.linalg.cholesky(matrix)))
        return float(0.5 * np.mean(np.diagonal(matrix) - 1.0 - log_det))
    except np.linalg.LinAlgError:
        values = np.maximum(np.linalg.eigvalsh(matrix), np.finfo(float).tiny)
    return float(0.5 * np.mean(values - 1.0 - np.log(values)))
