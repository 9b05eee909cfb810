"""Loops over rows that do in one visit what array expressions need several for."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["centre", "column_sums", "subtract_rows"]


@njit(cache=True, nogil=True)
def column_sums(X):  # type: ignore[no-untyped-def]
    """Return the sums of the columns (d,), four rows at a time."""
    n, d = X.shape
    sums = np.zeros(d)
    whole = n - n % 4
    for i in range(0, whole, 4):
        for j in range(d):
            sums[j] += (X[i, j] + X[i + 1, j]) + (X[i + 2, j] + X[i + 3, j])
    for i in range(whole, n):
        for j in range(d):
            sums[j] += X[i, j]
    return sums


@njit(cache=True, nogil=True)
def centre(X, origin, out):  # type: ignore[no-untyped-def]
    """Write ``X - origin`` to `out` (n, d), and return the sums of its squares (d,)."""
    n, d = X.shape
    squares = np.zeros(d)
    for i in range(n):
        for j in range(d):
            value = np.float64(X[i, j]) - origin[j]
            out[i, j] = value
            squares[j] += value * value
    return squares


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
