"""Weighted second moments of rows [design, x], centred and mergeable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["Scatter", "block_scatter", "joint_scatter"]

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
    design = np.empty((block.n_rows, 0)) if block.design is None else block.design
    rows = np.concatenate([design, block.X], axis=1, dtype=np.float64)
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
