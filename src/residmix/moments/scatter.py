"""Weighted second moments of rows [design, x], centred and mergeable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from residmix.moments.linear import LinearMoments


from dataclasses import dataclass

from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = [
    "Scatter",
    "block_scatter",
    "check_design_moments",
    "check_feature_moments",
    "check_magnitudes",
    "joint_scatter",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scatter:
    r"""Weight, mean and centred scatter :math:`\sum_i w_i (u_i - \bar u)(u_i - \bar u)'` of rows :math:`u`.

    The mean is kept as ``origin + offset``, a point near the data plus a small correction: the differences of means
    that merging squares then keep their digits, whatever the columns' distance from 0.

    Attributes
    ----------
    n_rows : int
        Rows seen.
    weight : float
        Sum of their weights.
    origin, offset : ndarray (m,)
    scatter : ndarray (m, m)
    """

    n_rows: int
    weight: float
    origin: Array
    offset: Array
    scatter: Array

    def merge(self, other: Scatter) -> Scatter:
        """Return the moments of both sets of rows together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        weight = self.weight + other.weight
        if weight == 0:
            return self
        step = (other.origin - self.origin) + (other.offset - self.offset)
        share = other.weight / weight
        with np.errstate(invalid="ignore", over="ignore"):  # of huge numbers, which are refused when all are seen
            scatter = self.scatter + other.scatter + (self.weight * share) * np.outer(step, step)
        return Scatter(self.n_rows + other.n_rows, weight, self.origin, self.offset + share * step, scatter)

    @property
    def mean(self) -> Array:
        """Mean of the rows, (m,)."""
        return self.origin + self.offset

    @property
    def covariance(self) -> Array:
        """Scatter over weight, (m, m)."""
        return self.scatter / self.weight


def block_scatter(block: Block) -> Scatter:
    """Return the moments of one block."""
    rows = np.concatenate([block.design, block.X], axis=1, dtype=np.float64)
    if block.weight is None or not block.weight.any():
        origin = rows.mean(axis=0)
    else:
        origin = block.weight @ rows / block.weight.sum()
    rows -= origin
    if block.weight is None:
        weight, total = float(len(rows)), rows.sum(axis=0)
    else:
        weight, total = float(block.weight.sum()), block.weight @ rows
        rows *= np.sqrt(block.weight)[:, None]
    offset = total / (weight or 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        scatter = rows.T @ rows - weight * np.outer(offset, offset)
    return Scatter(len(rows), weight, origin, offset, scatter)


def joint_scatter(rows: Rows) -> Scatter:
    """Return the moments of [design, x] over all rows, by one ordered fold."""
    return fold(rows, block_scatter, Scatter.merge)


# Standard deviations whose squares, summed over any number of rows, are ordinary numbers of double precision.
_SMALLEST, _LARGEST = 1e-145, 1e145


def check_magnitudes(
    names: Sequence[str],
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
    shared: NDArray[np.float64],
    variance_x: NDArray[np.float64],
) -> None:
    r"""Raise ValueError if a design column's spread is so small or large that its squares underflow or overflow.

    A variance that underflowed is 0, but covariances with features of ordinary size are not: the inequality of Cauchy
    and Schwarz, :math:`\sigma_a \ge |s_{ax}| / \sigma_x`, tells a tiny column from a constant.

    Parameters
    ----------
    names : sequence of str
        Of the design columns.
    mean, variance : ndarray (q,)
        Of the design columns; infinite or NaN where it overflowed.
    shared : ndarray (q, d)
        Covariances with the features.
    variance_x : ndarray (d,)
        Of the features.

    Examples
    --------
    >>> one = np.ones(1)
    >>> check_magnitudes(["dose"], 0 * one, np.inf * one, np.array([[1e200]]), one)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: design column 'dose' has a standard deviation of 1e+200 or more, whose square is beyond ...
    """
    with np.errstate(all="ignore"):
        bound = np.abs(shared) / np.sqrt(np.where(variance_x > 0, variance_x, np.inf))
        bound = np.where(np.isfinite(bound), bound, 0.0).max(axis=1, initial=0.0)
        spread = np.maximum(np.where(np.isfinite(variance), np.sqrt(np.maximum(variance, 0.0)), 0.0), bound)
    for name, size, centre, sound in zip(names, spread, np.abs(mean), np.isfinite(variance), strict=False):
        if sound and (size <= 8 * np.finfo(float).eps * centre or _SMALLEST <= size <= _LARGEST):
            continue
        size = size if sound else max(size, _LARGEST)
        raise ValueError(
            f"design column {name!r} has a standard deviation of {size:.0e} or more, whose square is beyond double "
            f"precision; divide the column by {size:.0e}"
        )


def check_design_moments(names: Sequence[str], moments: LinearMoments) -> None:
    """Raise ValueError if `check_magnitudes` does, of the moments of a design and features."""
    weight = np.where(moments.weight > 0, moments.weight, 1.0)
    with np.errstate(all="ignore"):
        variance = np.max(np.diagonal(moments.s_aa, axis1=1, axis2=2) / weight[:, None], axis=0)
        check_magnitudes(names, moments.mean_a[0], variance, moments.s_ax / weight, moments.s_xx / weight)


def check_feature_moments(names: Sequence[Any], moments: LinearMoments) -> None:
    """Raise ValueError if squares of a feature overflow, or underflow though it varies with the design."""
    with np.errstate(all="ignore"):
        weight = np.where(moments.weight > 0, moments.weight, 1.0)
        variance = moments.s_xx / weight
        spread = np.sqrt(np.diagonal(moments.s_aa, axis1=1, axis2=2).T / weight)  # (q, g)
        # Cauchy and Schwarz again
        bound = np.max(np.where(spread > 0, np.abs(moments.s_ax / weight) / spread, 0.0), axis=0, initial=0.0)
        varies = bound > 8 * np.finfo(float).eps * np.abs(moments.mean_x)
        tiny = varies & (bound < _SMALLEST) & (variance < _SMALLEST**2)
        huge = ~np.isfinite(variance)
    for j in np.flatnonzero(tiny | huge)[:1]:
        size = max(bound[j], _LARGEST) if huge[j] else bound[j]
        raise ValueError(
            f"feature {str(names[j])!r} has a standard deviation of {size:.0e} or more, whose square is beyond double "
            f"precision; divide the column by {size:.0e}"
        )
