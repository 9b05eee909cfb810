"""Loops in twice the working precision; see `residmix.kernels.twice`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable, readable_weight
from residmix.kernels.compiled import compiled, piece
from residmix.kernels.twice import SPLITTER, split

__all__ = ["products_twice", "residual_twice"]

Array = NDArray[np.float64]


def residual_twice(
    X: Array, A: Array, origin_x: Array, origin_a: Array, coef: tuple[Array, Array], constant: tuple[Array, Array]
) -> tuple[Array, Array]:
    high, low = np.empty(X.shape), np.empty(X.shape)
    heads, tails = split(coef[0])
    _residual(
        readable(X), readable(A), origin_x, origin_a, *map(np.ascontiguousarray, (*coef, heads, tails, *constant)),
        high, low,
    )  # fmt: skip
    return high, low


def products_twice(
    A: Array, origin_a: Array, residual: tuple[Array, Array], weight: Array | None
) -> tuple[Array, Array]:
    q, d = A.shape[1], residual[0].shape[1]
    high, low, row = np.zeros((q + 1, d)), np.zeros((q + 1, d)), np.empty((4, d))
    _products(readable(A), origin_a, *residual, readable_weight(weight), row, high, low)
    return high, low


@piece
def _split(a):
    far = SPLITTER * a
    head = far - (far - a)
    return head, a - head


@piece
def _sum(a, b):
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


@compiled
def _residual(X, A, origin_x, origin_a, coef, coef_low, heads, tails, constant, constant_low, high, low):
    n, d = X.shape
    q = len(origin_a)
    for i in range(n):
        for j in range(d):
            value, lost = _sum(X[i, j], -origin_x[j])
            value, more = _sum(value, -constant[j])
            high[i, j] = value
            low[i, j] = lost + more - constant_low[j]
        for k in range(q):
            z, z_low = _sum(A[i, k], -origin_a[k])
            head, tail = _split(z)
            for j in range(d):
                product = z * coef[k, j]
                error = ((head * heads[k, j] - product) + head * tails[k, j] + tail * heads[k, j]) + tail * tails[k, j]
                value, lost = _sum(high[i, j], -product)
                high[i, j] = value
                low[i, j] += lost - error - (z_low * coef[k, j] + z * coef_low[k, j])
        for j in range(d):
            value, lost = _sum(high[i, j], low[i, j])
            known = value == value  # a row that a feature lacks has no say in it
            high[i, j] = value if known else 0.0
            low[i, j] = lost if known else 0.0


@compiled
def _products(A, origin_a, residual, residual_low, weight, row, high, low):
    """Add to `high` and `low` (q + 1, d); `row` is room for a weighted row: high, low, and high in halves."""
    n, d = residual.shape
    q = len(origin_a)
    for i in range(n):
        w = weight[i] if weight.size > 0 else 1.0
        w_head, w_tail = _split(w)
        for j in range(d):
            r = residual[i, j]
            head, tail = _split(r)
            value = w * r
            error = ((w_head * head - value) + w_head * tail + w_tail * head) + w_tail * tail
            value, lost = _sum(value, error + w * residual_low[i, j])
            row[0, j] = value
            row[1, j] = lost
            head, tail = _split(value)
            row[2, j] = head
            row[3, j] = tail
        for k in range(q + 1):
            z, z_low = (1.0, 0.0) if k == q else _sum(A[i, k], -origin_a[k])
            head, tail = _split(z)
            for j in range(d):
                product = z * row[0, j]
                error = ((head * row[2, j] - product) + head * row[3, j] + tail * row[2, j]) + tail * row[3, j]
                value, lost = _sum(high[k, j], product)
                high[k, j] = value
                low[k, j] += lost + error + z_low * row[0, j] + z * row[1, j]
