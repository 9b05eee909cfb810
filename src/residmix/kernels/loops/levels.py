"""Loops over rows of a few levels; see their twins in `residmix.kernels.levels`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels import levels
from residmix.kernels.arrays import readable
from residmix.kernels.compiled import clear, compiled
from residmix.kernels.levels import MOST_KEPT
from residmix.kernels.loops.products import RUN_ROWS, centred_products
from residmix.kernels.writers.levels import add_products, rescale_levels

__all__ = ["level_products", "rescale_rows"]

Floats = NDArray[np.float64]

# Columns that are done together: the sums of their products with a few columns of the design stay in the first cache.
CHUNK = 512
# Where the next line of sums begins: a line of the cache further, since those 4096 bytes apart drive each other out.
STEP = CHUNK + 8


@compiled
def _add_levels(X, A, order, starts, origin_x, origin_a, weight, a, part, run, sum_a, aa, sums):
    """Add up the products of each level's rows, their sums and their squares in `sums` (K, q + 2, d).

    The sums over a run of rows are kept in `run`, and those of the design in `part` (q, q + 1).
    """
    (n, d), q = X.shape, A.shape[1]
    for k in range(len(starts) - 1):
        for first in range(0, d, CHUNK):
            width = min(CHUNK, d - first)
            for begin in range(starts[k], starts[k + 1], RUN_ROWS):
                clear(run, (q + 2) * STEP)
                for l in range(q):
                    for m in range(q + 1):
                        part[l, m] = 0.0
                for r in range(begin, min(begin + RUN_ROWS, starts[k + 1])):
                    i, ahead = order[r], order[min(r + 1, n - 1)]
                    w = weight[i] if weight.size > 0 else 1.0
                    for l in range(q):
                        centred = A[i, l] - origin_a[k, l]
                        a[l] = w * centred
                        for m in range(l + 1):
                            part[l, m] += a[m] * centred
                        part[l, q] += a[l]
                    at = i * d + first
                    add_products(X, at, ahead * d + first, width, origin_x, k * d + first, w, a, q, run, STEP)
                for l in range(q + 2):
                    for j in range(width):
                        sums[k, l, first + j] += run[l * STEP + j]
                if first == 0:
                    for l in range(q):
                        sum_a[k, l] += part[l, q]
                        for m in range(l + 1):
                            aa[k, l, m] += part[l, m]
                            aa[k, m, l] = aa[k, l, m]


def level_products(
    X: NDArray[np.floating],
    A: Floats,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    origin_x: Floats,
    origin_a: Floats,
    weight: Floats,
) -> tuple[Floats, ...]:
    K, d, q = len(starts) - 1, X.shape[1], A.shape[1]
    # so many columns fill the registers of the loop that has no levels
    if q > MOST_KEPT:
        return levels.level_products(X, A, order, starts, origin_x, origin_a, weight, centred_products)
    sum_a, aa, sums = np.zeros((K, q)), np.zeros((K, q, q)), np.zeros((K, q + 2, d))
    about = map(readable, (X, A, order, starts, origin_x, origin_a))
    _add_levels(*about, weight, np.empty(q), np.empty((q, q + 1)), np.empty((q + 2) * STEP), sum_a, aa, sums)
    return sums[:, q], sum_a, aa, sums[:, :q], sums[:, q + 1]


@compiled
def _rescale(X, design, first, origin, coef, base, origin_x, shift, stretch, codes, back, out):
    (n, d), q, k, step = X.shape, design.shape[1], len(coef), base.shape[1] if len(base) > 1 else 0
    rescale_levels(X, n, d, design, q, first, origin, coef, k, base, step, origin_x, shift, stretch, codes, back, out)


def rescale_rows(
    X: NDArray[np.floating],
    design: Floats,
    first: int,
    origin: Floats,
    coef: Floats,
    base: Floats,
    origin_x: Floats,
    shift: Floats,
    stretch: Floats,
    codes: NDArray[np.int64],
    back: bool,
    out: NDArray[np.floating],
) -> None:
    about = map(readable, (origin, coef, base, origin_x, shift, stretch, codes))
    _rescale(readable(X), readable(design), first, *about, back, out)
