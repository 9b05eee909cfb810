"""Further passes over the rows: a QR factor for ill-conditioned designs, and products of residuals for refinement.

A Gram matrix squares the condition number. The triangular factor of the stacked blocks doesn't: factor each block, then
factor the stacked factors (TSQR; Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34, 2012). Residuals are
taken in twice the working precision, so that a solution can be refined to nearly all its digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import products_twice, residual_twice
from residmix.kernels.twice import two_sum
from residmix.rows.block import Block

__all__ = ["LeftOver", "ResidualMoments", "Triangle", "Triangularize", "merge_residual_moments", "merge_triangles"]

Array = NDArray[np.float64]


@dataclass
class Triangle:
    """Factor R of ``z = [1, a - mean_a]`` times root weights, and ``Q' (x - origin_x)``.

    Attributes
    ----------
    factors : tuple of ndarray (k, q + 1)
        One for all features, or one per feature when values are missing; k <= q + 1.
    products : tuple of ndarray (k, d) or (k, 1)
    """

    factors: tuple[Array, ...]
    products: tuple[Array, ...]


@dataclass(frozen=True)
class Triangularize:
    """``block -> Triangle``; when features lack rows, each has a factor of its own.

    Columns are taken from their mean over the rows that a feature has. From anywhere else, a factor takes a constant
    for a column: what it rounds is as large as the distance to there.

    Attributes
    ----------
    origin_a, offset_a : ndarray (q,), (g, q)
        Mean of the design is ``origin_a + offset_a``; g is 1 when every feature has every row, else d.
    origin_x : ndarray (d,)
    """

    origin_a: Array
    offset_a: Array
    origin_x: Array

    def __call__(self, block: Block) -> Triangle:
        a = block.design - self.origin_a
        x = np.asarray(block.X, dtype=np.float64) - self.origin_x
        root = None if block.weight is None else np.sqrt(block.weight)[:, None]
        if len(self.offset_a) == 1 and x.shape[1] > 1:  # the mean of one feature may be that of some rows only
            return Triangle(*_factor(a - self.offset_a[0], x, root))
        parts = []
        for column, offset in zip(x.T, self.offset_a, strict=True):
            have = ~np.isnan(column)
            parts.append(_factor(a[have] - offset, column[have, None], None if root is None else root[have]))
        return Triangle(tuple(f[0] for f, _ in parts), tuple(p[0] for _, p in parts))


def _factor(a: Array, x: Array, root: Array | None) -> tuple[tuple[Array], tuple[Array]]:
    z = np.column_stack([np.ones(len(a)), a])
    return _factored(z, x) if root is None else _factored(z * root, x * root)


def _factored(z: Array, x: Array) -> tuple[tuple[Array], tuple[Array]]:
    orthogonal, factor = np.linalg.qr(z)
    return (factor,), (orthogonal.T @ x,)


def merge_triangles(one: Triangle, two: Triangle) -> Triangle:
    """Return the triangle of the rows of both."""
    factors, products = [], []
    for r1, r2, c1, c2 in zip(one.factors, two.factors, one.products, two.products, strict=True):
        (factor,), (product,) = _factored(np.vstack([r1, r2]), np.vstack([c1, c2]))
        factors.append(factor)
        products.append(product)
    return Triangle(tuple(factors), tuple(products))


@dataclass
class ResidualMoments:
    """Moments of residuals r: products with ``z = [a - origin_a, 1]``, and their squares.

    Attributes
    ----------
    high, low : ndarray (q + 1, d)
        The products are their sum.
    rss : ndarray (d,)
        Weighted sum of squared residuals.
    """

    high: Array
    low: Array
    rss: Array

    @property
    def z_r(self) -> Array:
        return self.high + self.low


@dataclass(frozen=True)
class LeftOver:
    """``block -> ResidualMoments`` for ``x - origin_x - constant - (a - origin_a) coef``; used to refine a solution.

    Attributes
    ----------
    coef, constant : tuple of ndarray (q, d), (d,)
        High and low parts.
    plain : bool
        Of `residmix.kernels.pairs.small`.
    """

    origin_x: Array
    origin_a: Array
    coef: tuple[Array, Array]
    constant: tuple[Array, Array]
    plain: bool = False

    def __call__(self, block: Block) -> ResidualMoments:
        X, A, w = np.asarray(block.X, dtype=np.float64), block.design, block.weight
        residual = residual_twice(X, A, self.origin_x, self.origin_a, self.coef, self.constant, plain=self.plain)
        r = residual[0]
        rss = np.einsum("ij,ij->j", r, r) if w is None else np.einsum("i,ij,ij->j", w, r, r)
        high, low = products_twice(A, self.origin_a, residual, w, plain=self.plain)
        return ResidualMoments(high, low, rss)


def merge_residual_moments(one: ResidualMoments, two: ResidualMoments) -> ResidualMoments:
    """Return the moments of the residuals of both."""
    high, lost = two_sum(one.high, two.high)
    return ResidualMoments(high, one.low + two.low + lost, one.rss + two.rss)
