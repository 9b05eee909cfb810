"""Clusters of rows around centres: seeding, Lloyd's iterations and the clusters' moments.

Columns of all rows lie side by side. Starts are looked for on some ten thousand rows at most, where numpy's products
keep up with compiled loops, which everybody's first fit would have to wait for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["cluster_moments", "lloyd", "seed"]

Floats = NDArray[np.float64]


def seed(columns: Floats, weight: Floats, n_clusters: int, random_state: np.random.RandomState) -> Floats:
    """Return centres (K, d) far apart: greedy k-means++ (Arthur & Vassilvitskii 2007), as scikit-learn does it.

    Parameters
    ----------
    columns : ndarray (d, n)
        The rows' columns.
    weight : ndarray (n,)
        Positive.
    """
    d, n = columns.shape
    shares = random_state.uniform(size=(n_clusters, 2 + int(np.log(n_clusters))))
    centres = np.empty((n_clusters, d))
    chance, closest = weight, np.full(n, np.inf)
    for k in range(n_clusters):
        total = np.cumsum(chance)
        # the row at each share of the total weight; where all of it is used up, the last row that has any
        rows = np.searchsorted(total, shares[k, : None if k else 1] * total[-1], side="right")
        rows = np.minimum(rows, np.searchsorted(total, total[-1]))
        trials = np.minimum(_squared_distances(columns, columns[:, rows]), closest)
        best = int((trials @ weight).argmin())
        centres[k], closest = columns[:, rows[best]], trials[best]
        chance = weight * closest
    return centres


def _squared_distances(columns: Floats, centres: Floats) -> Floats:
    """Return those of rows (d, n) to centres (d, K), (K, n): differences first, so that equal rows are 0 apart."""
    found, gap = np.zeros((centres.shape[1], columns.shape[1])), np.empty((centres.shape[1], columns.shape[1]))
    for column, centre in zip(columns, centres, strict=True):
        np.subtract(column, centre[:, None], out=gap)
        found += np.square(gap, out=gap)
    return found


def lloyd(columns: Floats, weight: Floats, centres: Floats, max_iter: int) -> NDArray[np.int64]:
    """Return the rows' clusters (n,) after k-means from `centres` (K, d); with ``max_iter=0`` the nearest centres.

    A cluster without rows stays where it is.
    """
    K, numbers = len(centres), np.arange(len(centres))
    origin = columns.mean(axis=1)
    x, centres = columns - origin[:, None], centres - origin
    weighted = (x * weight).T
    labels = before = np.empty(0, dtype=np.int64)
    for iteration in range(max_iter + 1):
        # squared distances less what is the same for all centres, over -2
        near = centres @ x - 0.5 * np.einsum("kj,kj->k", centres, centres)[:, None]
        labels, best = np.zeros(near.shape[1], dtype=np.int64), near[0]
        for k in range(1, K):
            np.copyto(labels, k, where=near[k] > best)
            best = np.maximum(near[k], best)
        if iteration == max_iter or np.array_equal(labels, before):
            break
        before, member = labels, (labels == numbers[:, None]).astype(np.float64)
        counts = member @ weight
        held = counts > 0
        centres[held] = (member @ weighted)[held] / counts[held, None]
    return labels


def cluster_moments(
    columns: Floats, weight: Floats, labels: NDArray[np.int64], n_clusters: int, *, diagonal: bool
) -> tuple[Floats, Floats, Floats]:
    """Return the clusters' weights (K,), means (K, d) and scatters (K, d, d) about them, or their diagonals (K, d)."""
    K, d = n_clusters, len(columns)
    counts, means = np.zeros(K), np.zeros((K, d))
    scatter = np.zeros((K, d) if diagonal else (K, d, d))
    for k in range(K):
        chosen = labels == k
        w = weight[chosen]
        if not len(w):
            continue
        counts[k] = w.sum()
        x = columns[:, chosen]
        means[k] = x @ w / counts[k]
        x -= means[k][:, None]
        scatter[k] = np.einsum("ji,ji,i->j", x, x, w) if diagonal else (x * w) @ x.T
    return counts, means, scatter
