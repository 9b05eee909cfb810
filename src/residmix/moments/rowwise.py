"""Loops over rows that do in one visit what array expressions need several for."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["centre", "subtract_rows"]


@njit(cache=True, nogil=True)
def centre(X, origin, out):  # type: ignore[no-untyped-def]
    """Write ``y = X - origin`` to `out` (n, d), and return the sums of y and of its squares, (d,) each."""
    n, d = X.shape
    sums, squares = np.zeros(d), np.zeros(d)
    for i in range(n):
        for j in range(d):
            value = np.float64(X[i, j]) - origin[j]
            out[i, j] = value
            sums[j] += value
            squares[j] += value * value
    return sums, squares


@njit(cache=True, nogil=True)
def subtract_rows(X, design, origin_x, origin_a, coef, constant, sign, out):  # type: ignore[no-untyped-def]
    """Write ``X + sign * (origin_x + (design - origin_a) coef + constant)`` to `out` (n, d), in its dtype.

    Only the first p columns of `design` are read, for `coef` (p, d).
    """
    n, d = X.shape
    p = len(coef)
    row = np.empty(d)
    for i in range(n):
        for j in range(d):
            row[j] = (np.float64(X[i, j]) + sign * origin_x[j]) + sign * constant[j]
        k = 0
        while k + 4 <= p:  # four at a time: the row is loaded and stored once for all of them
            a = sign * (design[i, k] - origin_a[k])
            b = sign * (design[i, k + 1] - origin_a[k + 1])
            c = sign * (design[i, k + 2] - origin_a[k + 2])
            e = sign * (design[i, k + 3] - origin_a[k + 3])
            for j in range(d):
                row[j] += a * coef[k, j] + b * coef[k + 1, j] + c * coef[k + 2, j] + e * coef[k + 3, j]
            k += 4
        while k < p:
            a = sign * (design[i, k] - origin_a[k])
            for j in range(d):
                row[j] += a * coef[k, j]
            k += 1
        for j in range(d):
            out[i, j] = row[j]
