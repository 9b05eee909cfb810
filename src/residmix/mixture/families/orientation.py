"""Matrices that components have in common up to their volume, and axes that they have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import turn_axes
from residmix.mixture.families.axes import MOST, SETTLED, axis_variances

__all__ = ["common_axes", "common_form"]

Floats = NDArray[np.float64]

# Axes have settled when no pair of them turns by more than this angle, whose square is what it costs.
TURNED = 1e-8


def common_form(W: Floats, n: Floats) -> Floats:
    r"""Return :math:`\lambda_k C`, :math:`|C| = 1`, that minimise :math:`\sum_k n_k (\log |\lambda_k C| + tr C^{-1} W_k
    / \lambda_k)`.

    Celeux & Govaert (1995), section 4.1.2: each half is exact given the other one. Convex along geodesics, so there's
    one minimum.
    """
    d, size = W.shape[1], np.ones(len(n))
    for _ in range(MOST):
        C = np.tensordot(n / size, W, 1)
        sign, log = np.linalg.slogdet(C)
        if not (sign > 0 and np.isfinite(log)):
            return np.full(W.shape, np.nan)
        C /= np.exp(log / d)
        before, size = size, np.einsum("ij,kji->k", np.linalg.inv(C), W) / d
        if not np.abs(size - before).max() > SETTLED * size.max():
            break
    return size[:, None, None] * C


def common_axes(W: Floats, n: Floats, volume: str, previous: Floats | None) -> Floats:
    r"""Return :math:`D V_k D'`, D orthogonal and :math:`V_k` diagonal, of the least :math:`\sum_k n_k (\log |V_k| + tr
    V_k^{-1} D' W_k D)`.

    Variances given axes are exact, and so is the plane rotation of each pair of axes given the variances (Flury &
    Gautschi 1986, "An algorithm for simultaneous orthogonal transformation of several positive definite symmetric
    matrices to nearly diagonal form", SIAM J. Sci. Stat. Comput. 7). There may be several minima: without `previous`
    the best of those reached from the axes of the features, of each component and of all together.

    Parameters
    ----------
    W : ndarray (K, d, d)
    n : ndarray (K,)
    volume : {"E", "V"}
        With "E" all determinants are equal.
    previous : ndarray (K, d, d), optional
        Covariances with common axes, where the search begins.
    """
    if previous is not None:
        # weights without a pattern: where one sum of the covariances has equal eigenvalues, this one doesn't
        D = np.linalg.eigh(np.tensordot(np.sqrt(np.arange(2.0, len(n) + 2)) / _size(previous), previous, 1))[1]
        return _settled(W, n, volume, D)[1]
    pooled = np.tensordot(n, W, 1)
    begun = [np.eye(len(pooled)), *np.linalg.eigh(np.concatenate([pooled[None], W]))[1]]
    return min((_settled(W, n, volume, D) for D in begun), key=lambda found: found[0])[1]


def _size(covariances: Floats) -> Floats:
    return np.trace(covariances, axis1=1, axis2=2)


def _settled(W: Floats, n: Floats, volume: str, D: Floats) -> tuple[float, Floats]:
    """Return the sum that is minimised, up to a constant, and the covariances."""
    D = np.ascontiguousarray(D)
    turned = np.ascontiguousarray(D.T @ W @ D)
    for _ in range(MOST):
        variances = axis_variances(np.diagonal(turned, axis1=1, axis2=2), n, volume, "V")
        if not turn_axes(turned, D, n[:, None] / variances) > TURNED:
            break
    variances = axis_variances(np.diagonal(turned, axis1=1, axis2=2), n, volume, "V")
    value = float(n @ np.log(variances).sum(axis=1))
    return value if np.isfinite(value) else np.inf, (D * variances[:, None, :]) @ D.T
