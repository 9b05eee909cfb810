"""Weighted second moments of the joint row [a; x], which least squares is computed from.

Moments are kept about their own mean and merged by Chan, Golub and LeVeque (1983), never as ``E[x^2] - mean^2``. A mean
is kept as ``origin + offset``, a point near the data plus a small correction: differences of means then don't cancel,
and columns like a calendar time of 1e8 with a spread of 1 lose no digits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable_weight
from residmix.kernels.pairs import centred_products
from residmix.rows.block import Block

__all__ = [
    "LinearMoments",
    "Moments",
    "block_origins",
    "linear_block_rows",
    "linear_moments",
    "made_of_numbers",
    "merge_moments",
    "moments_about",
    "without_moments",
]

Array = NDArray[np.float64]

_FEW = 16

# Share of a sum below which what is left of it after a subtraction has fewer than nine digits.
DIGITS_LEFT = float(np.finfo(np.float64).eps) / 1e-9


@dataclass
class LinearMoments:
    """Moments of n rows with q design columns and d features.

    The axis g is 1 without missing values, else d: then each feature has its own moments of the design, over its
    observed rows.

    Attributes
    ----------
    count : ndarray (g,)
        Rows of positive weight.
    weight : ndarray (g,)
        Sum of the weights.
    origin_a, offset_a : ndarray (q,), (g, q)
        Mean of the design is ``origin_a + offset_a``.
    origin_x, offset_x : ndarray (d,), (d,)
        Mean of the features is ``origin_x + offset_x``.
    s_aa, s_ax, s_xx : ndarray (g, q, q), (q, d), (d,)
        Centred, weighted scatter; of x with x only the diagonal.
    """

    count: Array
    weight: Array
    origin_a: Array
    offset_a: Array
    origin_x: Array
    offset_x: Array
    s_aa: Array
    s_ax: Array
    s_xx: Array

    @property
    def linear(self) -> LinearMoments:
        """These: what moments with absorbed factors hold beside their sums by level."""
        return self

    @property
    def mean_a(self) -> Array:
        """Mean of the design, (g, q)."""
        return self.origin_a + self.offset_a

    @property
    def mean_x(self) -> Array:
        """Mean of the features, (d,)."""
        return self.origin_x + self.offset_x


class Moments(Protocol):
    """Moments of any kind, all of which hold linear ones."""

    @property
    def linear(self) -> LinearMoments: ...


def linear_block_rows(d: int, q: int) -> int:
    """Return the rows in a block: at most eight megabytes, which take much longer than to hand them to a thread."""
    return int(np.clip(2 ** int(np.log2(1048576 / max(d + q, 1))), 256, 16384))


def linear_moments(block: Block, origins: tuple[Array, Array] | None = None, *, plain: bool = False) -> LinearMoments:
    """Return the moments of one block; NaN in X is a missing value.

    The origins, of features and of the design, are points near the rows; by default of the block's own. `plain` is of
    `residmix.kernels.pairs.small`.
    """
    A = block.design
    with np.errstate(invalid="ignore", over="ignore"):
        origins = origins or block_origins(block.X, A, block.weight)
        sums = centred_products(block.X, A, *origins, readable_weight(block.weight), plain=plain)
        sum_x, sum_a, aa, ax, squares = sums
        moments = moments_about(*origins, sum_x, sum_a, aa, ax, squares, block.n_rows, block.weight)
    # a sum is a number only if every term is; infinite ones, of huge numbers, are looked at again
    if not made_of_numbers(moments) and (missing := np.isnan(block.X)).any():
        return _moments_missing(np.asarray(block.X, dtype=np.float64), A, block.weight, missing)
    return moments


def made_of_numbers(moments: LinearMoments) -> bool:
    """Return True only if no feature held an infinity, nor a NaN where there are moments for all features together."""
    return bool(np.isfinite(moments.s_xx).all())


def block_origins(X: NDArray[Any], A: Array, weight: Array | None) -> tuple[Array, Array]:
    """Return points amid the rows: means of a few of them, spread over the block lest it be sorted."""
    rows: Any = slice(0, len(X), max(1, len(X) // _FEW))
    # rows of weight 0 must not move the origin, unless there are no others
    if weight is not None and len(weighty := np.flatnonzero(weight)):
        rows = weighty[:: max(1, len(weighty) // _FEW)]
    return X[rows].mean(axis=0, dtype=np.float64), A[rows].mean(axis=0)


def moments_about(
    origin_x: Array,
    origin_a: Array,
    sum_x: Array,
    sum_a: Array,
    aa: Array,
    ax: Array,
    square: Array,
    n: int,
    weight: Array | None,
) -> LinearMoments:
    """Return moments from (weighted) sums of n rows about the origins; see `centred_products`."""
    total = float(n if weight is None else weight.sum())
    offset_a, offset_x = sum_a / (total or 1.0), sum_x / (total or 1.0)
    return LinearMoments(
        count=np.array([n if weight is None else np.count_nonzero(weight)], dtype=float),
        weight=np.array([total]),
        origin_a=origin_a,
        offset_a=offset_a[None],
        origin_x=origin_x,
        offset_x=offset_x,
        s_aa=(aa - total * np.outer(offset_a, offset_a))[None],
        s_ax=ax - total * np.outer(offset_a, offset_x),
        s_xx=np.maximum(square - total * offset_x**2, 0.0),
    )


def _moments_missing(X: Array, A: Array, weight: Array | None, missing: NDArray[np.bool_]) -> LinearMoments:
    n, q = A.shape
    d = X.shape[1]
    w = np.ones(n) if weight is None else weight
    have = np.where(missing, 0.0, w[:, None])
    total = have.sum(axis=0)
    safe = np.where(total > 0, total, 1.0)
    filled = np.where(missing, 0.0, X)
    origin_x = np.einsum("ij,ij->j", have, filled) / safe
    _, origin_a = block_origins(X, A, weight)
    x = np.where(missing, 0.0, filled - origin_x)
    a = A - origin_a
    left, right = np.triu_indices(q)
    # All the features' q x q scatters at once: products of pairs of columns, summed by each feature's own weights.
    pairs = have.T @ (a[:, left] * a[:, right])
    s_aa = np.empty((d, q, q))
    s_aa[:, left, right] = pairs
    s_aa[:, right, left] = pairs
    sum_a = have.T @ a
    sum_x = np.einsum("ij,ij->j", have, x)
    offset_a, offset_x = sum_a / safe[:, None], sum_x / safe
    return LinearMoments(
        count=np.count_nonzero(have, axis=0).astype(float),
        weight=total,
        origin_a=origin_a,
        offset_a=offset_a,
        origin_x=origin_x,
        offset_x=offset_x,
        s_aa=s_aa - total[:, None, None] * offset_a[:, :, None] * offset_a[:, None, :],
        s_ax=a.T @ (have * x) - (total * offset_x) * offset_a.T,
        s_xx=np.maximum(np.einsum("ij,ij,ij->j", have, x, x) - total * offset_x**2, 0.0),
    )


def merge_moments(one: LinearMoments, two: LinearMoments) -> LinearMoments:
    """Return the moments of the rows of both; or of stacks of both, where all arrays have further axes in front."""
    weight = one.weight + two.weight
    safe = np.where(weight > 0, weight, 1.0)
    share = two.weight / safe  # (g,)
    cross = one.weight * share
    step_a = (two.origin_a - one.origin_a)[..., None, :] + (two.offset_a - one.offset_a)  # (g, q)
    step_x = (two.origin_x - one.origin_x) + (two.offset_x - one.offset_x)  # (d,)
    with np.errstate(invalid="ignore", over="ignore"):  # of huge numbers, as within blocks
        return LinearMoments(
            count=one.count + two.count,
            weight=weight,
            origin_a=one.origin_a,
            offset_a=one.offset_a + share[..., None] * step_a,
            origin_x=one.origin_x,
            offset_x=one.offset_x + share * step_x,
            s_aa=one.s_aa + two.s_aa + cross[..., None, None] * step_a[..., :, None] * step_a[..., None, :],
            s_ax=one.s_ax + two.s_ax + cross[..., None, :] * np.swapaxes(step_a, -1, -2) * step_x[..., None, :],
            s_xx=one.s_xx + two.s_xx + cross * step_x**2,
        )


def without_moments(one: LinearMoments, two: LinearMoments) -> LinearMoments:
    """Return the moments of the rows of `one` without those of `two`: the inverse of merging.

    Raises
    ------
    ValueError
        If `two` has more weight, or so much of the variation that the rest would have fewer than nine correct digits.
    """
    if not (one.weight - two.weight > DIGITS_LEFT * one.weight).all():
        raise ValueError(
            f"rows of weight {two.weight.max():g} can't be removed from a fit of weight {one.weight.min():g}; they "
            "must be rows of the fit, and not nearly all of it"
        )
    opposite = replace(two, count=-two.count, weight=-two.weight, s_aa=-two.s_aa, s_ax=-two.s_ax, s_xx=-two.s_xx)
    left = merge_moments(one, opposite)
    for what, before, after in (
        ("metadata columns", np.diagonal(one.s_aa, axis1=1, axis2=2), np.diagonal(left.s_aa, axis1=1, axis2=2)),
        ("features", one.s_xx[None], left.s_xx[None]),
    ):
        lost = np.flatnonzero(((before > 0) & ~(after > DIGITS_LEFT * before)).any(axis=0))
        if lost.size:
            raise ValueError(
                f"the rows to forget hold all but a millionth of the variation of {what} {lost[:10].tolist()}, or "
                "aren't rows of the fit, so the result would be rounding errors; call fit on the remaining rows"
            )
    return left
