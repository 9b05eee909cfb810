r"""Directions in which whitened rows are least normal: there clusters lie apart, if they do anywhere.

Invariant coordinate selection takes the eigenvectors of :math:`\sum_i w_i |y_i|^2 y_i y_i' / \sum_i w_i` for whitened y
(Cardoso 1989; Tyler, Critchley, Dumbgen & Oja 2009, J. R. Stat. Soc. B 71): a direction of two clusters alike in size
has a small eigenvalue, of a rare one a large one. With n rows of d features the eigenvalues of noise spread over
:math:`2 d \sqrt{2/n}`, so the directions are sharpened by projection pursuit, whose noise is of order
:math:`\sqrt{24 d / n}`: fixed-point steps for the kurtosis, or the skewness, of the projection (Hyvarinen 1999, IEEE
Trans. Neural Networks 10). Skewness sees what kurtosis can't: clusters with shares near .21 and .79.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["directions", "enough_rows"]

Floats = NDArray[np.float64]

# Fixed-point steps for a direction.
STEPS = 8
# A gain in kurtosis that ends them.
SMALL = 1e-3
# Bytes of the rows that directions are found on, at most.
LARGEST_SAMPLE = 64e6


def enough_rows(n_features: int) -> int:
    """Return how many rows directions want: the noise of their eigenvalues is below 1 then."""
    return int(min(8 * n_features**2, LARGEST_SAMPLE // (8 * n_features)))


def directions(y: Floats, w: Floats, wanted: int) -> Floats:
    """Return unit vectors (d, m), the most promising first: m is `wanted` of small kurtosis, one of large, one skew.

    Parameters
    ----------
    y : ndarray (n, d)
        Whitened rows, none far outside.
    w : ndarray (n,)
    wanted : int
    """
    total, d = w.sum(), y.shape[1]
    squared = w * (y**2).sum(axis=1)
    _, vectors = np.linalg.eigh((y * squared[:, None]).T @ y / total)
    m = min(wanted, d)
    u = _sharpened(y, w, np.concatenate([vectors[:, :m], vectors[:, -1:]], axis=1), np.r_[np.full(m, -1.0), 1.0])
    u = np.concatenate([u, _skewest(y, w, squared @ y)[:, None]], axis=1)
    # each the way that rows are skewed
    p = y @ u
    return np.where(w @ (p * p * p) >= 0, u, -u)


def _sharpened(y: Floats, w: Floats, u: Floats, sign: Floats) -> Floats:
    """Return directions near u (d, m) of extreme kurtosis: smallest, each at right angles to those before, where `sign`
    is -1; and of the last one the largest.
    """
    total, alone = w.sum(), len(sign) - 1
    best, reached = u.copy(), np.full(len(sign), -np.inf)
    for _ in range(STEPS):
        # Gram and Schmidt's, in order
        q, r = np.linalg.qr(u[:, :alone])
        u = np.concatenate([q * np.where(np.diagonal(r) < 0, -1.0, 1.0), u[:, alone:]], axis=1)
        u = u / np.maximum(np.sqrt((u**2).sum(axis=0)), 1e-300)
        p = y @ u
        cubes = p * p * p * w[:, None]
        value = sign * np.einsum("ij,ij->j", cubes, p) / total
        better = value > reached + SMALL
        if not better.any():
            break
        best, reached = np.where(better, u, best), np.where(better, value, reached)
        u = sign * (y.T @ cubes / total - 3 * u)
    return best


def _skewest(y: Floats, w: Floats, u: Floats) -> Floats:
    """Return a direction of large skewness, by power iteration from u."""
    for _ in range(STEPS):
        length = float(np.linalg.norm(u))
        if not length > 1e-300:
            return np.asarray(np.eye(y.shape[1])[0])
        u = u / length
        u = (w * (y @ u) ** 2) @ y
    length = float(np.linalg.norm(u))
    return u / length if length > 0 else np.eye(y.shape[1])[0]
