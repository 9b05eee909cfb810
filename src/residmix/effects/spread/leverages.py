"""How much of a row's own the fit of the mean took, by the rows that each feature has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.effects.spread.steps import pinv
from residmix.moments.linear import LinearMoments

__all__ = ["Leverages"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Leverages:
    """Leverages of rows in the fit of the mean, whose rows are those that a feature has; a row of weight 2 is two rows.

    Attributes
    ----------
    inverse : ndarray (g, q + 1, q + 1)
        Of Gram matrices of [1, standardised design].
    group : ndarray of int (d,) or None
        Which one each feature has; None if all have the same.
    """

    inverse: Array
    group: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, gram: Array, moments: LinearMoments, group: NDArray[np.int64], mean: Array, sd: Array) -> Leverages:
        """Return those of all rows, from their Gram matrix, or with gaps of the rows of each group of features."""
        if len(moments.weight) == 1 < len(group):
            return cls(pinv(gram, 1e-13)[None])
        _, first = np.unique(group, return_index=True)
        inverse = np.empty((len(first), *gram.shape))
        for g, j in enumerate(first):
            own = np.zeros_like(gram)
            own[1:, 1:] = moments.s_aa[j] / sd[:, None] / sd
            at = np.append(1.0, (moments.mean_a[j] - mean) / sd)
            own += moments.weight[j] * np.outer(at, at)
            inverse[g] = pinv(own, 1e-13)
        return cls(inverse, group)

    def free(self, a: Array) -> Array:
        """Return the share of each row's square that the fit of the mean leaves, 1 - h, (b, 1) or (b, d)."""
        free = np.stack([1.0 - np.sum((a @ inverse) * a, axis=1) for inverse in self.inverse], axis=1)
        free = np.clip(free, 0.0, 1.0)
        return np.asarray(free if self.group is None else free[:, self.group])
