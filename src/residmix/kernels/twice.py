"""Residuals, and their products with the design, in twice the working precision: what refining a solution needs.

A number is kept as ``high + low``. Sums are split by Knuth's TwoSum and products by Dekker's TwoProduct, both exact, so
that results are as if they were computed with 106 bits (Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005). Plain
operations on purpose: a fused multiply-add isn't the same on every processor.

The last two functions have compiled loops beside them, see `residmix.kernels.pairs`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["dot_twice", "products_twice", "residual_twice", "split", "two_product", "two_sum"]

Array = NDArray[np.float64]

SPLITTER = 134217729.0  # 2**27 + 1: Veltkamp's, for 53 bits


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``a + b`` rounded, and what rounding took away."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def split(a: Array) -> tuple[Array, Array]:
    """Return two numbers of at most 26 bits each whose sum is `a`."""
    far = SPLITTER * a
    head = far - (far - a)
    return head, a - head


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``a b`` rounded, and what rounding took away."""
    product = a * b
    (a1, a2), (b1, b2) = split(a), split(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def dot_twice(start: tuple[Array, Array], left: Array, right: Array, sign: float = 1.0) -> tuple[Array, Array]:
    """Return ``start + sign * left @ right`` for left (q,) and right (q, d), high and low."""
    high, low = two_sum(*start)
    for a, b in zip(sign * left, right, strict=True):
        product, error = two_product(a, b)
        high, lost = two_sum(high, product)
        low = low + (lost + error)
    return two_sum(high, low)


def residual_twice(
    X: Array, A: Array, origin_x: Array, origin_a: Array, coef: tuple[Array, Array], constant: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Return ``X - origin_x - constant - (A - origin_a) coef`` (n, d), high and low; 0 where X is NaN."""
    high, low = two_sum(X, -origin_x)
    high, lost = two_sum(high, -constant[0])
    low = low + lost - constant[1]
    z, z_low = two_sum(A, -origin_a)
    for k in range(len(origin_a)):
        product, error = two_product(z[:, k, None], coef[0][k])
        high, lost = two_sum(high, -product)
        low += lost - error - (z_low[:, k, None] * coef[0][k] + z[:, k, None] * coef[1][k])
    high, low = two_sum(high, low)
    missing = np.isnan(high)
    return np.where(missing, 0.0, high), np.where(missing, 0.0, low)


def products_twice(
    A: Array, origin_a: Array, residual: tuple[Array, Array], weight: Array | None
) -> tuple[Array, Array]:
    """Return ``[A - origin_a, 1]' residual`` (q + 1, d), weighted, high and low."""
    n, width = len(A), A.shape[1] + 1
    z, z_low = two_sum(A, -origin_a)
    z, z_low = np.column_stack([z, np.ones(n)]), np.column_stack([z_low, np.zeros(n)])
    r, r_low = residual
    if weight is not None:
        r, error = two_product(weight[:, None], r)
        r, r_low = two_sum(r, error + weight[:, None] * r_low)
    high, low = np.zeros((width, r.shape[1])), np.zeros((width, r.shape[1]))
    for i in range(n):
        product, error = two_product(z[i, :, None], r[i])
        high, lost = two_sum(high, product)
        low += lost + error + z_low[i, :, None] * r[i] + z[i, :, None] * r_low[i]
    return high, low
