"""Loops over rows that do in one visit what array expressions need several for; see their twins in `plain`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import compiled
from residmix.kernels.writers.rows import add_codes, centre_rows, subtract_effects

__all__ = ["add_effects", "centre", "locate_levels", "subtract_rows", "sum_levels"]

Floats = NDArray[np.float64]


@compiled
def centre(X, origin, out, sums, squares):
    """Write ``y = X - origin`` to `out` (n, d), and add the sums of y and of its squares to `sums` and `squares`."""
    centre_rows(X, X.shape[0], X.shape[1], origin, out, sums, squares)


@compiled
def _subtract(X, design, origin_x, origin_a, coef, constant, sign, effects, codes, out):
    (n, d), q, p, levels = X.shape, design.shape[1], len(coef), len(effects) if codes.size > 0 else 0
    subtract_effects(X, n, d, design, q, origin_x, origin_a, coef, p, constant, sign, effects, codes, levels, out)


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
    _subtract(*about, sign, effects, readable(codes), out)


@compiled
def add_effects(out, effects, codes, sign):
    add_codes(out, out.shape[0], out.shape[1], effects, len(effects), codes, sign)


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
        row, w = sums[codes[i]], weight[i] if weight.size > 0 else 1.0  # found once a row: a third of the time
        for j in range(d):
            value = np.float64(values[i, j]) - origin[j]
            row[j] += w * value
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
