r"""Matching of the components of two mixtures by the smallest total distance.

The distance is Bhattacharyya's: 0 for equal components, 0.5 for two with identity covariance at a distance of 2:

.. math:: \tfrac18 (\mu_a - \mu_b)' S^{-1} (\mu_a - \mu_b) + \tfrac12 \log
    \frac{|S|}{\sqrt{|\Sigma_a| |\Sigma_b|}}, \qquad S = \frac{\Sigma_a + \Sigma_b}{2}
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import linear_sum_assignment
from sklearn.utils.validation import check_is_fitted

__all__ = ["distances", "match_components", "paired"]

Floats = NDArray[np.float64]


def match_components(
    one: Any, other: Any, *, return_distance: bool = False
) -> NDArray[np.intp] | tuple[NDArray[np.intp], Floats]:
    """Match the components of two mixtures, so that labels can be compared.

    The pairs have the smallest sum of Bhattacharyya distances (Hungarian method).

    Parameters
    ----------
    one, other : GaussianMixture or ResidualMixture
        Fitted, with the same features. For a `ResidualMixture`, the components of the residual are compared.
    return_distance : bool, default=False
        Whether to return the distances of the pairs as well.

    Returns
    -------
    order : ndarray of int (K,)
        ``other.means_[order]`` has the order of `one`; -1 for a component without a partner.
    distance : ndarray (K,)
        Only with `return_distance`; NaN without a partner.

    Raises
    ------
    ValueError
        If the numbers of features differ.

    Examples
    --------
    >>> import residmix as rm
    >>> one = rm.GaussianMixture.from_parameters([0.5, 0.5], [[0.0], [4.0]], [[[1.0]], [[1.0]]])
    >>> other = rm.GaussianMixture.from_parameters([0.3, 0.7], [[4.1], [0.2]], [[[1.0]], [[2.0]]])
    >>> rm.match_components(one, other)
    array([1, 0])
    """
    for model in (one, other):
        check_is_fitted(model)
    if one.means_.shape[1] != other.means_.shape[1]:
        sizes = f"{one.means_.shape[1]} and {other.means_.shape[1]}"
        raise ValueError(f"the mixtures have {sizes} features; fit both on the same features")
    apart = distances(*_parameters(one), *_parameters(other))
    order = paired(apart)
    if not return_distance:
        return order
    found = np.where(order >= 0, apart[np.arange(len(order)), np.maximum(order, 0)], np.nan)
    return order, found


def _parameters(model: Any) -> tuple[Floats, Floats]:
    return model.means_, model._model().full_covariances()


def distances(means: Floats, covariances: Floats, other_means: Floats, other_covariances: Floats) -> Floats:
    """Return the distance of each component (K, d), (K, d, d) from each other one, (K, L)."""
    found = np.empty((len(means), len(other_means)))
    log = 0.5 * np.linalg.slogdet(covariances)[1]
    other_log = 0.5 * np.linalg.slogdet(other_covariances)[1]
    for a in range(len(means)):
        for b in range(len(other_means)):
            root = np.linalg.cholesky((covariances[a] + other_covariances[b]) / 2)
            away = solve_triangular(root, means[a] - other_means[b], lower=True)
            found[a, b] = away @ away / 8 + np.log(np.diagonal(root)).sum() - 0.5 * (log[a] + other_log[b])
    return found


def paired(apart: Floats) -> NDArray[np.intp]:
    """Return the column that belongs to each row of a table of distances, -1 for none."""
    order = np.full(len(apart), -1)
    rows, columns = linear_sum_assignment(apart)
    order[rows] = columns
    return order
