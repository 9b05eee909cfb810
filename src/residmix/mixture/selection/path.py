"""Starts for every number of components at once: many small clusters, merged down one by one.

What model-based hierarchical clustering does from single rows (Fraley 1998, "Algorithms for model-based Gaussian
hierarchical clustering", SIAM J. Sci. Comput. 20), done from a few dozen clusters of a subsample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import cluster_moments, lloyd, seed
from residmix.mixture.params import MixtureParams, SingularCovarianceError, make_params
from residmix.mixture.selection.merging import merged_down
from residmix.mixture.starts import subsample
from residmix.rows.rows import Rows

__all__ = ["merged_starts"]

Floats = NDArray[np.float64]

# Clusters to begin with, for each component of the largest mixture; and rows that each must have on average.
EACH = 3
MIN_ROWS = 4


def merged_starts(
    rows: Rows, sizes: tuple[int, ...], random_state: np.random.RandomState, reg_covar: float
) -> dict[int, MixtureParams]:
    """Return full mixtures of the given numbers of components; those without one have too few rows.

    Parameters
    ----------
    rows : Rows
    sizes : tuple of int
        Increasing.
    random_state : RandomState
    reg_covar : float
    """
    block = subsample(rows, sizes[-1], random_state)
    x = np.asarray(block.X, dtype=np.float64)
    w = np.ones(len(x)) if block.weight is None else block.weight
    x, w = x[w > 0], w[w > 0]
    order = np.lexsort(x.T[::-1])  # so that the order of rows doesn't matter
    x, w = x[order], w[order]
    mean = np.average(x, axis=0, weights=w)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    z = (x - mean) / np.where(spread > 0, spread, 1.0)
    d, many = x.shape[1], min(EACH * sizes[-1], len(np.unique(z, axis=0)) // MIN_ROWS)
    if many < 2:
        return {}
    columns = np.ascontiguousarray(z.T)
    labels = lloyd(columns, w, seed(columns, w, many, random_state), max_iter=20)[0]
    n, means, scatter = cluster_moments(np.ascontiguousarray((x - mean).T), w, labels, many, diagonal=False)
    n, means, scatter = n[n > 0], means[n > 0], scatter[n > 0]
    # as if each cluster had d + 1 more rows with the pooled covariance
    covariances = (scatter + (d + 1) * scatter.sum(axis=0) / n.sum()) / (n + d + 1)[:, None, None]
    covariances += reg_covar * np.eye(d)
    found: dict[int, MixtureParams] = {}
    state = n[None], means[None], covariances[None]
    for size in reversed(sizes):
        if size > state[0].shape[1]:
            continue
        if not (np.linalg.slogdet(state[2])[0] > 0).all():
            break
        _, *parts = merged_down(size, *state)
        state = parts[0], parts[1], parts[2]
        try:
            found[size] = make_params(state[0][0] / n.sum(), state[1][0] + mean, state[2][0], "full")
        except SingularCovarianceError:
            continue
    return found
