"""The loop from the moments of full covariances to parameters; see its twin in `residmix.kernels.plain`.

On some thousand rows the calls of numpy and LAPACK for a few small matrices take as long as the rows.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import compiled, piece

__all__ = ["full_parameters"]

Floats = NDArray[np.float64]


def full_parameters(
    weight: Floats, shift: Floats, scatter: Floats, means: Floats, floor: float, cancelled: float, ridge: float
) -> tuple[Floats, Floats, Floats, Floats] | None:
    K, d = shift.shape
    made = np.empty(K), np.empty((K, d)), np.empty((K, d, d)), np.empty((K, d, d))
    given = readable(weight), readable(shift), readable(scatter), readable(means)
    ordinary = _fill_parameters(*given, floor, cancelled, ridge, *made, np.empty(d), np.empty(d))
    return made if ordinary else None


@piece
def _fill_factor(matrices, k, factors, root, diagonal):
    """Fill factors[k] with inv(L)' for ``matrix = L L'``; return False if it has none.

    The matrix is scaled to unit diagonal first. L is kept below the diagonal, on it is `diagonal`.
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
def _fill_parameters(
    weight, shift, scatter, old, floor, cancelled, ridge, weights, means, covariances, factors, e, root
):
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
            means[k, j] = old[k, j] + e[j]
        for j in range(d):
            for i in range(j + 1):
                value = 0.5 * (scatter[k, i, j] + scatter[k, j, i]) / weight[k] - e[i] * e[j]
                covariances[k, i, j] = covariances[k, j, i] = value
            covariances[k, j, j] += ridge
            if e[j] ** 2 > cancelled * abs(covariances[k, j, j]):
                return False
        if not _fill_factor(covariances, k, factors, root, e):
            return False
    return True
