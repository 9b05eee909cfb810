"""Matrices that components have in common up to their volume, and axes that they have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import turn_axes
from residmix.mixture.families.axes import axis_variances, settled_sizes

__all__ = ["common_axes", "common_form"]

Floats = NDArray[np.float64]

# Features up to which axes are turned without a compiled loop: so few pairs take less time than an E-step.
FEW_AXES = 6


def common_form(W: Floats, n: Floats, previous: Floats | None) -> Floats:
    r"""Return :math:`\lambda_k C`, :math:`|C| = 1`, that minimise :math:`\sum_k n_k (\log |\lambda_k C| + tr C^{-1} W_k
    / \lambda_k)`.

    Celeux & Govaert (1995), section 4.1.2: each half is exact given the other one. Convex along geodesics, so there's
    one minimum; the search begins at the volumes of `previous` (K, d, d).
    """
    d = W.shape[1]

    def shares(size: Floats) -> tuple[Floats, float]:
        each = (n / size)[:, None, None] * W
        total = each.sum(axis=0)
        sign, log = np.linalg.slogdet(total)
        return (np.linalg.inv(total) @ each, float(log)) if sign > 0 and np.isfinite(log) else (each, np.nan)

    begin = np.ones(len(n)) if previous is None else np.exp(np.linalg.slogdet(previous)[1] / d)
    size = settled_sizes(begin, n, d, shares)
    C = np.tensordot(n / size, W, 1)
    sign, log = np.linalg.slogdet(C)
    if not (sign > 0 and np.isfinite(log)):
        return np.full(W.shape, np.nan)
    C /= np.exp(log / d)
    size = np.einsum("ij,kji->k", np.linalg.inv(C), W) / d
    return np.asarray(size[:, None, None] * C)


def common_axes(W: Floats, n: Floats, volume: str, previous: Floats | None) -> Floats:
    r"""Return :math:`D V_k D'`, D orthogonal and :math:`V_k` diagonal, of smaller :math:`\sum_k n_k (\log |V_k| + tr
    V_k^{-1} D' W_k D)` than `previous`, unless that is at a minimum.

    Variances given axes are exact, and so is the plane rotation of each pair of axes given the variances (Flury &
    Gautschi 1986, "An algorithm for simultaneous orthogonal transformation of several positive definite symmetric
    matrices to nearly diagonal form", SIAM J. Sci. Stat. Comput. 7). Each pair turns once; EM does the rest (ECM: Meng
    & Rubin 1993, Biometrika 80). To the end at once would be likelier now and less likely later: axes that fit the
    first clusters found are seldom left again (iris, five clusters: log-likelihood -185 instead of -208).

    Parameters
    ----------
    W : ndarray (K, d, d)
    n : ndarray (K,)
    volume : {"E", "V"}
        With "E" all determinants are equal.
    previous : ndarray (K, d, d), optional
        Covariances with common axes, where the search begins. Default: the axes of the pooled covariance.
    """
    # weights without a pattern: where one sum of the covariances has equal eigenvalues, this one doesn't
    weight = n if previous is None else np.sqrt(np.arange(2.0, len(n) + 2)) / np.trace(previous, axis1=1, axis2=2)
    D = np.ascontiguousarray(np.linalg.eigh(np.tensordot(weight, W if previous is None else previous, 1))[1])
    turned = np.ascontiguousarray(D.T @ W @ D)
    precision = n[:, None] / axis_variances(np.diagonal(turned, axis1=1, axis2=2), n, volume, "V")
    turn_axes(turned, D, precision, plain=len(D) <= FEW_AXES)
    variances = axis_variances(np.diagonal(turned, axis1=1, axis2=2), n, volume, "V")
    return np.asarray((D * variances[:, None, :]) @ D.T)
