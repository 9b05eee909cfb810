"""Triangular factors of stacks of matrices: compiled loops while these are small, LAPACK where its blocking pays.

A call of LAPACK costs more than the arithmetic of a 4 x 4 matrix twenty times over, and EM on a few hundred rows is
made of such calls.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dtrtri

from residmix.kernels.compiled import compiled, piece, readable

__all__ = ["SMALL", "factor_stack", "full_step", "inverse_cholesky", "inverse_triangles"]

Floats = NDArray[np.float64]

# Columns up to which the compiled loops are quicker (measured).
SMALL = 32


@piece
def _factor_matrix(matrices, k, factors, root, diagonal):
    """Do what `factor_stack` does for matrix k; return whether it has a factor.

    L is kept below the diagonal of the matrix that is filled, and on it is `diagonal`.
    """
    d = matrices.shape[1]
    for j in range(d):
        if not matrices[k, j, j] > 0.0:
            return False
        root[j] = np.sqrt(matrices[k, j, j])
    for j in range(d):
        for i in range(j, d):
            rest = matrices[k, i, j] / (root[i] * root[j])
            for m in range(j):
                rest -= factors[k, i, m] * factors[k, j, m]
            if i > j:
                factors[k, i, j] = rest / diagonal[j]
            elif 0.0 < rest < np.inf:
                diagonal[j] = np.sqrt(rest)
            else:
                return False
    for j in range(d):
        factors[k, j, j] = 1.0 / diagonal[j]
        for i in range(j + 1, d):
            total = 0.0
            for m in range(j, i):
                total -= factors[k, i, m] * factors[k, j, m]
            factors[k, j, i] = total / diagonal[i]
            factors[k, i, j] = 0.0
    for j in range(d):
        for i in range(j, d):
            factors[k, j, i] /= root[j]
    return True


@compiled
def factor_stack(matrices, factors, failed, root, diagonal):
    """Fill `factors` (K, d, d) with inv(L)' for ``matrix = L L'``, and `failed` (K,); return whether all have one.

    A matrix is scaled to unit diagonal first, so no scale can overflow. `root` and `diagonal` (d,) are scratch.
    """
    every = True
    for k in range(len(matrices)):
        found = _factor_matrix(matrices, k, factors, root, diagonal)
        failed[k] = not found
        every &= found
    return every


@compiled
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
        factor_stack(readable(matrices), factors, failed, np.empty(d), np.empty(d))
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
    _invert_stack(readable(triangles), inverses)
    return inverses


@compiled
def full_step(weight, shift, scatter, old_means, floor, cancelled, reg_covar, weights, means, covariances, e):
    """Do what `residmix.mixture.mstep.m_step` does, up to the factors, if nothing is out of the ordinary.

    Parameters
    ----------
    weight, shift, scatter : (K,), (K, d), (K, d, d)
        Moments about `old_means` (K, d).
    floor, cancelled, reg_covar : float
        `m_step` has the weight a component is alive above, and how far a mean may jump.
    weights, means, covariances : (K,), (K, d), (K, d, d)
        Filled.
    e : (d,)
        Scratch.

    Returns
    -------
    bool
        False if a component died, or its mean jumped too far for the digits there are: then what was filled is of no
        use.
    """
    K, d = shift.shape
    total = 0.0
    for k in range(K):
        if not weight[k] > floor:
            return False
        total += weight[k]
    for k in range(K):
        weights[k] = weight[k] / total
        for j in range(d):
            e[j] = shift[k, j] / weight[k]
            means[k, j] = old_means[k, j] + e[j]
        for j in range(d):
            for i in range(j + 1):
                value = 0.5 * (scatter[k, i, j] + scatter[k, j, i]) / weight[k] - e[i] * e[j]
                covariances[k, i, j] = covariances[k, j, i] = value
            covariances[k, j, j] += reg_covar
            if e[j] ** 2 > cancelled * abs(covariances[k, j, j]):
                return False
    return True
