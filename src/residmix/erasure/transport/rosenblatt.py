r"""Rows to independent standard normal scores and back, by Rosenblatt's transform of their mixtures.

z is standard normal if x has the mixture's law, each :math:`z_j` grows with :math:`x_j`, and the map is one to one; the
formula stands in `residmix.kernels.rosenblatt`.

References
----------
Rosenblatt, "Remarks on a multivariate transformation", Annals of Mathematical Statistics 23:470-472, 1952.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import rows_of_scores, scores_of_rows

__all__ = ["Mixtures", "from_scores", "to_scores"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mixtures:
    """A mixture for each of n rows.

    Attributes
    ----------
    log_weights : ndarray (n, K)
    means : ndarray (n, K, d)
    factors : ndarray (G, K, d, d)
        Lower Cholesky factors of the covariances, by group of rows.
    group : ndarray of int (n,)
    spread : ndarray (n, K, d)
        What multiplies a factor's rows: the covariance of row i is D L L' D with D of ``spread[i, k]``.
    """

    log_weights: Floats
    means: Floats
    factors: Floats
    group: NDArray[np.intp]
    spread: Floats

    def repeated(self, n: int) -> Mixtures:
        """Return the mixture of the first row for each of n rows."""
        return Mixtures(
            np.repeat(self.log_weights[:1], n, axis=0),
            np.repeat(self.means[:1], n, axis=0),
            self.factors,
            np.repeat(self.group[:1], n),
            np.repeat(self.spread[:1], n, axis=0),
        )

    def groups(self) -> list[tuple[Floats, NDArray[np.intp]]]:
        """Return the factors (K, d, d) of each group that has rows, and these."""
        present = np.unique(self.group)
        return [(self.factors[g], np.flatnonzero(self.group == g)) for g in present]


def to_scores(x: Floats, given: Mixtures, *, plain: bool = False) -> Floats:
    """Return the standard normal scores z (n, d) of rows x (n, d); `plain` runs the twin of the compiled loop."""
    law = given.log_weights, given.means, given.factors, given.group, given.spread
    return np.asarray(scores_of_rows(x, *law, plain=plain))


def from_scores(z: Floats, given: Mixtures, *, plain: bool = False) -> Floats:
    """Return the rows x (n, d) whose scores are z (n, d)."""
    law = given.log_weights, given.means, given.factors, given.group, given.spread
    return np.asarray(rows_of_scores(z, *law, plain=plain))
