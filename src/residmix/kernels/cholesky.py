"""Triangular factors of stacks of matrices, by numpy and LAPACK."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtri

__all__ = ["inverse_cholesky", "inverse_triangles"]

Floats = NDArray[np.float64]


def inverse_cholesky(matrices: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return inv(L)' (K, d, d), upper triangular, for ``matrix = L L'``, and which matrices have none (K,).

    A matrix is scaled to unit diagonal first, so no scale can overflow.
    """
    diagonal = np.einsum("kii->ki", matrices)
    failed = ~(diagonal > 0).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        root = np.sqrt(diagonal)
        scaled = matrices / (root[:, :, None] * root[:, None, :])
    try:
        lower = np.linalg.cholesky(scaled)
    except np.linalg.LinAlgError:
        # one at a time, to learn which
        lower = np.empty(matrices.shape)
        for k in range(len(matrices)):
            try:
                lower[k] = np.linalg.cholesky(scaled[k])
            except np.linalg.LinAlgError:
                failed[k] = True
    # NaN and infinity get through some implementations, and fail at the end only
    failed |= ~np.isfinite(lower[:, -1, -1])
    factors = np.empty(matrices.shape)
    for k in np.flatnonzero(~failed):
        # upper triangle of the transpose: the same memory as the lower one
        factors[k] = dtrtri(lower[k].T, lower=0)[0]
    factors[~failed] /= root[~failed, :, None]
    return factors, failed


def inverse_triangles(triangles: Floats) -> Floats:
    """Return the inverses (K, d, d) of upper triangular matrices."""
    inverses = np.empty(triangles.shape)
    for k, triangle in enumerate(triangles):
        # lower of the transpose: the same memory; what lies on the other side isn't touched
        inverses[k] = dtrtri(triangle.T, lower=1)[0].T
    return np.triu(inverses)
