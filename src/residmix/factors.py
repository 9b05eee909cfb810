"""Triangular factors of stacks of matrices: compiled loops while these are small, LAPACK where its blocking pays.

A call of LAPACK costs more than the arithmetic of a 4 x 4 matrix twenty times over, and EM on a few hundred rows is
made of such calls.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri

__all__ = ["SMALL", "factor_matrix", "inverse_cholesky", "inverse_triangles"]

Floats = NDArray[np.float64]

# Columns up to which the compiled loops are quicker (measured).
SMALL = 32


@njit(nogil=True)
def factor_matrix(matrix, lower, root, factor):
    """Fill `factor` with inv(L)' for ``matrix = L L'``; return whether that exists.

    The matrix is scaled to unit diagonal first, so no scale can overflow. `lower` (d, d) and `root` (d,) are scratch.
    """
    d = len(matrix)
    for j in range(d):
        if not matrix[j, j] > 0.0:
            return False
        root[j] = np.sqrt(matrix[j, j])
    for j in range(d):
        for i in range(j, d):
            rest = matrix[i, j] / (root[i] * root[j])
            for m in range(j):
                rest -= lower[i, m] * lower[j, m]
            if i > j:
                lower[i, j] = rest / lower[j, j]
            elif 0.0 < rest < np.inf:
                lower[j, j] = np.sqrt(rest)
            else:
                return False
    for j in range(d):
        factor[j, j] = 1.0 / lower[j, j]
        for i in range(j + 1, d):
            total = 0.0
            for m in range(j, i):
                total -= lower[i, m] * factor[j, m]
            factor[j, i] = total / lower[i, i]
            factor[i, j] = 0.0
    for j in range(d):
        for i in range(j, d):
            factor[j, i] /= root[j]
    return True


@njit(nogil=True, cache=True)
def _factor_stack(matrices, factors, failed):
    d = matrices.shape[1]
    lower, root = np.empty((d, d)), np.empty(d)
    for k in range(len(matrices)):
        failed[k] = not factor_matrix(matrices[k], lower, root, factors[k])


@njit(nogil=True, cache=True)
def _invert_stack(triangles, inverses):
    d = triangles.shape[1]
    for k in range(len(triangles)):
        for j in range(d):
            inverses[k, j, j] = 1.0 / triangles[k, j, j]
            for i in range(j - 1, -1, -1):
                total = 0.0
                for m in range(i + 1, j + 1):
                    total -= triangles[k, i, m] * inverses[k, m, j]
                inverses[k, i, j] = total / triangles[k, i, i]
                inverses[k, j, i] = 0.0


def inverse_cholesky(matrices: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return inv(L)' (K, d, d), upper triangular, for ``matrix = L L'``, and which matrices have none (K,)."""
    K, d = matrices.shape[:2]
    factors, failed = np.empty((K, d, d)), np.zeros(K, dtype=bool)
    if d <= SMALL:
        _factor_stack(np.ascontiguousarray(matrices), factors, failed)
        return factors, failed
    for k, matrix in enumerate(matrices):
        diagonal = np.diagonal(matrix)
        failed[k] = not (diagonal > 0).all()
        if failed[k]:
            continue
        root = np.sqrt(diagonal)
        # upper triangle of the transpose: the same memory as the lower one, without a copy; NaN fails at the end only
        factor, info = dpotrf((matrix / (root[:, None] * root)).T, lower=0, clean=1, overwrite_a=1)
        failed[k] = info or not np.isfinite(factor[-1, -1])
        if not failed[k]:
            factors[k] = dtrtri(factor, lower=0, overwrite_c=1)[0] / root[:, None]
    return factors, failed


def inverse_triangles(triangles: Floats) -> Floats:
    """Return the inverses (K, d, d) of upper triangular matrices."""
    if triangles.shape[1] > SMALL:
        return np.stack([np.triu(dtrtri(triangle)[0]) for triangle in triangles])
    inverses = np.empty(triangles.shape)
    _invert_stack(np.ascontiguousarray(triangles), inverses)
    return inverses
