"""Weighted second moments of rows [design, x], centred and mergeable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.moments.fold import fold
from residmix.sources.rows import Block, Rows

__all__ = ["Scatter", "joint_scatter"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scatter:
    r"""Weight, mean and centred scatter :math:`\sum_i w_i (u_i - \bar u)(u_i - \bar u)'` of rows :math:`u`.

    Attributes
    ----------
    n_rows : int
        Rows seen.
    weight : float
        Sum of their weights.
    mean : ndarray (m,)
    scatter : ndarray (m, m)
    """

    n_rows: int
    weight: float
    mean: Array
    scatter: Array

    def merge(self, other: Scatter) -> Scatter:
        """Return the moments of both sets of rows together (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        weight = self.weight + other.weight
        if weight == 0:
            return self
        step = other.mean - self.mean
        share = other.weight / weight
        scatter = self.scatter + other.scatter + (self.weight * share) * np.outer(step, step)
        return Scatter(self.n_rows + other.n_rows, weight, self.mean + share * step, scatter)

    @property
    def covariance(self) -> Array:
        """Scatter over weight, (m, m)."""
        return self.scatter / self.weight


def of_block(block: Block) -> Scatter:
    """Moments of one block, taken about its own mean so that a large offset costs no digits."""
    design = np.empty((block.n_rows, 0)) if block.design is None else block.design
    rows = np.concatenate([design, block.X], axis=1, dtype=np.float64)
    if block.weight is None:
        mean = rows.mean(axis=0)
        rows -= mean
        return Scatter(len(rows), float(len(rows)), mean, rows.T @ rows)
    weight = float(block.weight.sum())
    mean = block.weight @ rows / weight if weight > 0 else np.zeros(rows.shape[1])
    rows -= mean
    rows *= np.sqrt(block.weight)[:, None]
    return Scatter(len(rows), weight, mean, rows.T @ rows)


def joint_scatter(rows: Rows) -> Scatter:
    """Return the moments of [design, x] over all rows, by one ordered fold."""
    return fold(rows, of_block, Scatter.merge)
