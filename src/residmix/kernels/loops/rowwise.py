"""Loops over rows that do in one visit what array expressions need several for; see their twins in `plain`.

In plain numba: instructions written one by one were no quicker (1M x 64 on 10 columns, benchmarks/kernel_loops.py).
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import compiled

__all__ = ["add_effects", "locate_levels", "subtract_rows", "sum_levels"]

Floats = NDArray[np.float64]

# Columns that are done together: up to 16 rows of coefficients then stay in the first cache.
CHUNK = 256


@compiled
def _subtract(X, design, origin_x, origin_a, coef, constant, sign, effects, codes, row, factors, out):
    """Do what `subtract_rows` does; `row` (CHUNK,) and `factors` (p,) are scratch."""
    (n, d), p = X.shape, len(coef)
    for begin in range(0, d, CHUNK):
        width = min(CHUNK, d - begin)
        for i in range(n):
            for j in range(width):
                row[j] = X[i, begin + j] + sign * origin_x[begin + j] + sign * constant[begin + j]
            if codes.size > 0:
                level = codes[i] if codes[i] >= 0 else codes[i] + len(effects)
                for j in range(width):
                    row[j] += sign * effects[level, begin + j]
            for k in range(p):
                factors[k] = sign * (design[i, k] - origin_a[k])
            # four at a time: the row is loaded and stored once for all of them
            for k in range(0, p // 4 * 4, 4):
                one, two, three, four = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
                for j in range(width):
                    c = begin + j
                    total = one * coef[k, c] + two * coef[k + 1, c]
                    row[j] += total + three * coef[k + 2, c] + four * coef[k + 3, c]
            for k in range(p // 4 * 4, p):
                for j in range(width):
                    row[j] += factors[k] * coef[k, begin + j]
            for j in range(width):
                out[i, begin + j] = row[j]


def subtract_rows(
    X: NDArray[np.floating],
    design: Floats,
    origin_x: Floats,
    origin_a: Floats,
    coef: Floats,
    constant: Floats,
    sign: float,
    effects: Floats,
    codes: NDArray[np.integer[Any]],
    out: NDArray[np.floating],
) -> None:
    about = map(readable, (X, design, origin_x, origin_a, coef, constant))
    _subtract(*about, sign, effects, readable(codes), np.empty(CHUNK), np.empty(len(coef)), out)


@compiled
def add_effects(out, effects, codes, sign):
    for i in range(len(out)):
        level = codes[i] if codes[i] >= 0 else codes[i] + len(effects)
        for j in range(out.shape[1]):
            out[i, j] += sign * effects[level, j]


@compiled
def _locate(codes, place, present, local):
    """Do what `locate_levels` does; return how many levels there are. `place` (size,) is -1 everywhere."""
    found = 0
    for i in range(len(codes)):
        code = codes[i]
        if place[code] < 0:
            place[code] = found
            present[found] = code
            found += 1
        local[i] = place[code]
    return found


def locate_levels(codes: NDArray[np.integer[Any]], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n = len(codes)
    present, local = np.empty(min(size, n), dtype=np.int64), np.empty(n, dtype=np.int64)
    found = _locate(readable(codes), np.full(size, -1, dtype=np.int64), present, local)
    return present[:found].copy(), local


@compiled
def _sum(values, origin, codes, weight, sums, squares):
    n, d = values.shape
    for i in range(n):
        w = weight[i] if weight.size > 0 else 1.0
        for j in range(d):
            value = np.float64(values[i, j]) - origin[j]
            sums[codes[i], j] += w * value
            squares[j] += w * value * value


def sum_levels(
    values: NDArray[np.floating],
    origin: Floats,
    codes: NDArray[np.int64],
    weight: Floats,
    sums: Floats,
    squares: Floats,
) -> None:
    _sum(readable(values), readable(origin), readable(codes), weight, sums, squares)
