"""Estimates for the levels of a factor, before they are pooled over features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import DesignWarning, warn

__all__ = ["Levels"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """Estimates for each level before shrinkage.

    Attributes
    ----------
    coded : ndarray (K, w)
        Design columns of the levels that have rows.
    n, squares : ndarray (K, d)
        Weight of their rows, and sum of squares about their mean.
    means : ndarray (K, d)
        Of their residuals, which least squares leaves at 0, or medians.
    shift : ndarray (K, d)
        Effect beyond `grand`.
    grand, pooled : ndarray (d,)
        Mean effect, each level counting with its rows, and standard deviation within levels; or the reference's.
    left : ndarray of bool (d,)
        Features that aren't adjusted.
    reference : int or None
        Which level it is; None also if it has no rows.
    """

    coded: Array
    n: Array
    squares: Array
    means: Array
    shift: Array
    grand: Array
    pooled: Array
    left: NDArray[np.bool_]
    reference: int | None

    @classmethod
    def of(
        cls,
        sums: tuple[Array, ...],
        coded: Array,
        coef: Array,
        left: NDArray[np.bool_],
        noise: Array | None,
        reference: int | None,
    ) -> Levels:
        """Return what weight, mean and squares of residuals by level tell, with the factor's coefficients."""
        n, means, squares = sums
        present = n.max(axis=1) > 0
        n, means, squares, coded = n[present], means[present], squares[present], coded[present]
        effect = coded @ coef + means
        total = np.where(n.sum(axis=0) > 0, n.sum(axis=0), 1.0)
        grand = np.sum(n * effect, axis=0) / total
        pooled = np.sqrt(np.sum(squares, axis=0) / total if noise is None else noise)
        if reference is not None and not present[reference]:
            reference = None
        if reference is not None:
            reference = int(np.count_nonzero(present[:reference]))
            grand = effect[reference]
            pooled = np.sqrt(squares[reference] / np.where(n[reference] > 0, n[reference], 1.0))
        return cls(coded, n, squares, means, effect - grand, grand, pooled, left, reference)

    def usable(self, features: Sequence[Any]) -> NDArray[np.bool_]:
        """Tell which features (d,) vary inside every level, so that they take part in the pooling; warn of others."""
        varies = (self.pooled > 0) & np.all((self.n < 2) | (self.squares > 1e-20 * self.pooled**2), axis=0)
        usable = varies & ~self.left
        if usable.sum() < 2 and len(self.coded) > 1:
            raise ValueError(
                f"shrinkage='eb' pools over features, but only {usable.sum()} of {usable.size} vary within every "
                "level; use shrinkage=None"
            )
        odd = ~varies & ~self.left
        if odd.any():
            some = ", ".join(repr(str(features[j])) for j in np.flatnonzero(odd)[:5])
            warn(
                f"{odd.sum()} of {odd.size} features ({some}) are constant within a level once the other effects are "
                "removed. For these, level means are removed without shrinkage",
                DesignWarning,
            )
        return np.asarray(usable)
