"""Predicted random effects of a factor's levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RandomEffects", "generalised_inverse", "level_indicators"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RandomEffects:
    r"""Best linear unbiased predictions of the effects of one factor's levels.

    Attributes
    ----------
    effects : ndarray (L, d)
        Of each level, in the units of x; their mean over the levels is 0.
    ratio : ndarray (d,)
        :math:`\lambda = \sigma^2 / \tau^2`, variance of the noise over that of the levels; above 1e300 where levels
        differ no more than noise explains. A level with n rows keeps about :math:`n / (n + \lambda)` of its mean.
    rows : ndarray (L, d)
        Weight of the rows of each level.
    noise : ndarray (d,) or None
        :math:`\sigma^2`, by restricted maximum likelihood; None in models from older versions.
    correlation : ndarray (d,) or None
        Of slopes: their correlation with the intercepts at the mean of the variable; NaN where one of them has no
        variance.
    """

    effects: Array
    ratio: Array
    rows: Array
    noise: Array | None = None
    correlation: Array | None = None


def level_indicators(levels: Array) -> tuple[Array, Array]:
    """Return `start` (L,) and `turn` (L - 1, L): a row of indicators is ``start + a @ turn``, `a` the factor's columns.

    Parameters
    ----------
    levels : ndarray (L, L - 1)
        The design columns of each level.

    Raises
    ------
    ValueError
        If the columns don't distinguish all levels.
    """
    L, w = levels.shape
    if w != L - 1:
        raise ValueError(
            f"to be shrunk, a factor of {L} levels needs {L - 1} columns in the design, but has {w}; "
            "use treatment coding"
        )
    inverse = np.linalg.inv(np.column_stack([np.ones(L), levels]))
    return inverse[0], inverse[1:]


def generalised_inverse(scatter: Array) -> Array:
    """Return the generalised inverse of a scatter matrix whose columns may have any units."""
    scale = np.sqrt(np.maximum(np.diagonal(scatter), 0.0))
    scale = np.where(scale > 0, scale, 1.0)
    inverse = np.linalg.pinv(scatter / scale[:, None] / scale, rcond=1e-12, hermitian=True)
    return np.asarray(inverse / scale[:, None] / scale, dtype=np.float64)
