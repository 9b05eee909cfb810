"""Loops over rows that do in one visit what array expressions need several for."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["add_effects", "centre", "subtract_rows"]

# Columns that are done together: up to 16 rows of coefficients then stay in the first cache.
CHUNK = 256


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
def subtract_rows(X, design, origin_x, origin_a, coef, constant, sign, effects, codes, out):  # type: ignore[no-untyped-def]
    """Write ``X + sign * (origin_x + (design - origin_a) coef + constant + effects[codes])`` to `out`, in its dtype.

    Only the first p columns of `design` are read, for `coef` (p, d). Without codes there are no effects.
    """
    n, d = X.shape
    p = len(coef)
    row = np.empty(min(d, CHUNK))
    for begin in range(0, d, CHUNK):
        part = slice(begin, min(begin + CHUNK, d))
        width = part.stop - begin
        first, second = origin_x[part], constant[part]
        for i in range(n):
            x = X[i, part]
            for j in range(width):
                row[j] = (np.float64(x[j]) + sign * first[j]) + sign * second[j]
            if codes.size > 0:
                effect = effects[codes[i], part]  # -1 finds the last one: the mean of the levels
                for j in range(width):
                    row[j] += sign * effect[j]
            k = 0
            while k + 4 <= p:  # four at a time: the row is loaded and stored once for all of them
                a = sign * (design[i, k] - origin_a[k])
                b = sign * (design[i, k + 1] - origin_a[k + 1])
                c = sign * (design[i, k + 2] - origin_a[k + 2])
                e = sign * (design[i, k + 3] - origin_a[k + 3])
                at_a, at_b, at_c, at_e = coef[k, part], coef[k + 1, part], coef[k + 2, part], coef[k + 3, part]
                for j in range(width):
                    row[j] += a * at_a[j] + b * at_b[j] + c * at_c[j] + e * at_e[j]
                k += 4
            while k < p:
                a = sign * (design[i, k] - origin_a[k])
                at_a = coef[k, part]
                for j in range(width):
                    row[j] += a * at_a[j]
                k += 1
            y = out[i, part]
            for j in range(width):
                y[j] = row[j]


@njit(cache=True, nogil=True)
def add_effects(out, effects, codes, sign):  # type: ignore[no-untyped-def]
    """Add ``sign * effects[codes]`` to `out` (n, d); code -1 finds the last row of the effects."""
    n, d = out.shape
    for i in range(n):
        row = effects[codes[i]]
        for j in range(d):
            out[i, j] += sign * row[j]
