"""Triangular factors of stacks of matrices, by LAPACK; inverses of very many small ones."""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrmm
from scipy.linalg.lapack import dpotrf, dtrtri

__all__ = [
    "inverse_cholesky",
    "inverse_factor",
    "inverse_triangles",
    "inverted",
    "many_inverse_cholesky",
    "swept",
]

Floats = NDArray[np.float64]

# Size up to which a call of LAPACK costs more than its arithmetic.
SMALL_MATRIX = 12
# Matrices up to which LAPACK, one by one, takes less time than operations on all of them, of which there are more for
# larger ones: so many for each row of one.
FEW_MATRICES = 3

# Size above which the factor of a large matrix is made from those of its halves.
_HALVED = 64


def inverse_cholesky(matrices: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return inv(L)' (K, d, d), upper triangular, for ``matrix = L L'``, and which matrices have none (K,).

    A matrix is scaled to unit diagonal first, so no scale can overflow.
    """
    factors, failed = np.zeros(matrices.shape), np.zeros(len(matrices), dtype=bool)
    diagonal = matrices.diagonal(0, 1, 2)
    if diagonal.min() > 0:
        root = np.sqrt(diagonal)
        scaled = matrices / (root[:, :, None] * root[:, None, :])
        for k in range(len(scaled)):
            # upper triangle of the transpose: the same memory as the lower one, without a copy
            factor, info = dpotrf(scaled[k].T, lower=0, clean=1, overwrite_a=1)
            # NaN fails at the end only
            failed[k] = info or not isfinite(factor[-1, -1])
            if not failed[k]:
                factors[k] = dtrtri(factor, lower=0, overwrite_c=1)[0]
        factors /= root[:, :, None]
        return factors, failed
    for k, matrix in enumerate(matrices):
        failed[k] = not matrix.diagonal().min() > 0
        if not failed[k]:
            factors[k : k + 1], failed[k : k + 1] = inverse_cholesky(matrix[None])
    return factors, failed


def inverse_factor(matrix: Floats) -> Floats:
    r"""Return :math:`A = L^{-1}` (d, d), lower triangular, for a positive definite matrix :math:`S = L L'`.

    By halves: after the first,

    .. math::
        L_{21} = S_{21} A_{11}', \quad A_{22} = \text{that of } S_{22} - L_{21} L_{21}',
        \quad A_{21} = -A_{22} L_{21} A_{11},

    so that nearly all of it is products of matrices: half the time of LAPACK's factor and inverse at some hundred rows.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix isn't positive definite.
    """
    work = np.array(matrix, dtype=np.float64, order="C")
    _to_inverse_factor(work.T, 0, len(work))  # columns first: there it is A', upper triangular
    return work


def _to_inverse_factor(work: Floats, first: int, last: int) -> None:
    """Replace rows and columns from `first` to `last` of a matrix by the inverse of its upper triangular factor."""
    if last - first <= _HALVED:
        own = work[first:last, first:last]
        factor, failed = dpotrf(own, lower=0, clean=1)
        if failed or not np.isfinite(factor.diagonal()).all():
            raise np.linalg.LinAlgError(f"a matrix of {len(work)} rows is not positive definite")
        own[...] = dtrtri(factor, lower=0, overwrite_c=1)[0]
        return
    half = (first + last) // 2
    left, right = slice(first, half), slice(half, last)
    _to_inverse_factor(work, first, half)
    before = np.asfortranarray(work[left, left])
    beside = dtrmm(1.0, before, work[left, right], trans_a=1)
    work[right, right] = dsyrk(-1.0, beside, beta=1.0, c=work[right, right], trans=1)
    _to_inverse_factor(work, half, last)
    beside = dtrmm(-1.0, before, beside, overwrite_b=1)
    work[left, right] = dtrmm(1.0, np.asfortranarray(work[right, right]), beside, side=1, overwrite_b=1)
    work[right, left] = 0.0


def many_inverse_cholesky(matrices: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return what `inverse_cholesky` does, to rounding; quicker for tens of small matrices."""
    diagonal = matrices.diagonal(0, 1, 2)
    if diagonal.min() > 0 and matrices.shape[1] <= SMALL_MATRIX:
        root = np.sqrt(diagonal)
        try:
            lower = np.linalg.cholesky(matrices / (root[:, :, None] * root[:, None, :]))
            # numpy 1 takes a matrix beside a stack of them for a stack of vectors
            inverse = np.linalg.solve(lower, np.broadcast_to(np.eye(matrices.shape[1]), lower.shape))
        except np.linalg.LinAlgError:
            return inverse_cholesky(matrices)
        if np.isfinite(inverse).all():
            return np.triu(inverse.swapaxes(1, 2)) / root[:, :, None], np.zeros(len(matrices), dtype=bool)
    return inverse_cholesky(matrices)


def inverse_triangles(triangles: Floats) -> Floats:
    """Return the inverses (K, d, d) of upper triangular matrices."""
    if triangles.shape[-1] <= SMALL_MATRIX and (triangles.diagonal(0, -2, -1) != 0).all():
        # no pivot is ever better than the diagonal above zeros: this is back substitution, of all at once
        return np.asarray(np.linalg.inv(triangles), dtype=np.float64)
    inverses = np.empty(triangles.shape)
    for k, triangle in enumerate(triangles):
        # lower of the transpose: the same memory; what lies on the other side isn't touched
        inverses[k] = dtrtri(triangle.T, lower=1)[0].T
    return np.triu(inverses)


def inverted(matrices: Floats) -> tuple[Floats, Floats]:
    """Return the inverses of symmetric matrices (d, d, C), and pivots (d, C) as `swept` does: all are positive, and
    their product is the determinant, where there is an inverse that is positive definite.
    """
    if matrices.shape[2] <= FEW_MATRICES * len(matrices):
        each = matrices.transpose(2, 0, 1)
        try:
            lower = np.linalg.cholesky(each)
            inverse = np.linalg.inv(each)
        except np.linalg.LinAlgError:
            return swept(matrices.copy())
        return np.asarray(inverse.transpose(1, 2, 0), dtype=np.float64), np.square(
            lower.diagonal(0, 1, 2), dtype=np.float64
        ).T
    return swept(matrices.copy())


def swept(matrices: Floats) -> tuple[Floats, Floats]:
    """Return the inverses of symmetric matrices (d, d, C), in their place, and the pivots (d, C) of Gauss and Jordan.

    A matrix is positive definite, and its inverse right, if all its pivots are positive; their product is its
    determinant.
    """
    d, pivots = len(matrices), np.empty(matrices.shape[1:])
    with np.errstate(all="ignore"):
        for j in range(d):
            row = matrices[j].copy()
            pivots[j] = row[j]
            column = row / row[j]
            matrices -= column[:, None] * row
            column[j] = -1.0 / pivots[j]
            matrices[j] = matrices[:, j] = column
    return np.negative(matrices, out=matrices), pivots
