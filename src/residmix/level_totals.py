"""What the rows of levels that fit didn't see add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LevelTotals", "with_known_and_unseen"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LevelTotals:
    r"""Sums over the rows of each level.

    Attributes
    ----------
    labels : tuple
        The levels.
    sums : ndarray (5, L, d)
        Of :math:`w`, :math:`w r`, :math:`w / f^2`, :math:`w r / f^2` and :math:`w r^2 / f^2`, where r is what all other
        effects leave of a row, relative to the average level, and f its spread as far as it is known.
    """

    labels: tuple[Any, ...]
    sums: Array

    @classmethod
    def none(cls, n_features: int) -> LevelTotals:
        """Return what there is before any rows."""
        return cls((), np.empty((5, 0, n_features)))

    def seen(self, labels: tuple[Any, ...], sums: Array) -> LevelTotals:
        """Return the totals after further rows."""
        known = (*self.labels, *(label for label in labels if label not in self.labels))
        whole = np.zeros((5, len(known), self.sums.shape[2]))
        whole[:, : len(self.labels)] = self.sums
        whole[:, [known.index(label) for label in labels]] += sums
        return LevelTotals(known, whole)

    @property
    def weight(self) -> Array:
        """Rows of each level, (L, d)."""
        return self.sums[0]

    @property
    def mean(self) -> Array:
        r"""Mean of r, :math:`\bar r`; 0 without rows, (L, d)."""
        return self.sums[1] / np.where(self.weight > 0, self.weight, 1.0)

    @property
    def within(self) -> Array:
        r"""Sum of :math:`w (r - \bar r)^2 / f^2`, (L, d)."""
        mean = self.mean
        squares = self.sums[4] - 2.0 * mean * self.sums[3] + mean**2 * self.sums[2]
        return np.where(squares > 1e-13 * self.sums[4], squares, 0.0)


def with_known_and_unseen(own: Array, unseen: Array) -> Array:
    """Return rows by code of new levels (L + 2, d): of each of them, of any other unseen level, of known ones."""
    return np.vstack([own, unseen, np.zeros_like(unseen)])
