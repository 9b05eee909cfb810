"""Clusters of rows around centres: seeding, Lloyd's iterations and the clusters' moments, in compiled loops.

Columns of all rows lie side by side, so that distances are taken to many rows at once.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["cluster_moments", "lloyd", "seed"]

Floats = NDArray[np.float64]


@njit(nogil=True)
def _squared_distances(columns, centre, out):
    d, n = columns.shape
    for i in range(n):
        gap = columns[0, i] - centre[0]
        out[i] = gap * gap
    for j in range(1, d):
        for i in range(n):
            gap = columns[j, i] - centre[j]
            out[i] += gap * gap


@njit(nogil=True, cache=True)
def _draw(weight, share):
    """Return the row at `share` of the total weight."""
    total = 0.0
    for i in range(len(weight)):
        total += weight[i]
    left, last = share * total, 0
    for i in range(len(weight)):
        if weight[i] > 0.0:
            last = i
            left -= weight[i]
            if left < 0.0:
                break
    return last


@njit(nogil=True, cache=True)
def _seed(columns, weight, shares, centres):
    d, n = columns.shape
    K, trials = shares.shape
    closest, chance = np.empty(n), np.empty(n)
    trial, best, point = np.empty(n), np.empty(n), np.empty(d)
    centres[0] = columns[:, _draw(weight, shares[0, 0])]
    _squared_distances(columns, centres[0], closest)
    for k in range(1, K):
        for i in range(n):
            chance[i] = weight[i] * closest[i]
        least = np.inf
        for t in range(trials):
            point[:] = columns[:, _draw(chance, shares[k, t])]
            _squared_distances(columns, point, trial)
            left = 0.0
            for i in range(n):
                trial[i] = min(trial[i], closest[i])
                left += weight[i] * trial[i]
            if left < least:
                least = left
                centres[k] = point
                trial, best = best, trial
        closest, best = best, closest


@njit(nogil=True, cache=True)
def _assign(columns, centres, labels):
    """Fill `labels` with the nearest centres."""
    n = columns.shape[1]
    closest, trial = np.empty(n), np.empty(n)
    _squared_distances(columns, centres[0], closest)
    labels[:] = 0
    for k in range(1, len(centres)):
        _squared_distances(columns, centres[k], trial)
        for i in range(n):
            nearer = trial[i] < closest[i]
            labels[i] = k if nearer else labels[i]
            closest[i] = trial[i] if nearer else closest[i]


@njit(nogil=True, cache=True)
def _lloyd(columns, weight, centres, labels, max_iter):
    d, n = columns.shape
    K = len(centres)
    before = np.full(n, -1, labels.dtype)
    for _ in range(max_iter):
        _assign(columns, centres, labels)
        changed = False
        for i in range(n):
            changed |= labels[i] != before[i]
        if not changed:
            return
        before[:] = labels
        sums, counts = np.zeros((K, d)), np.zeros(K)
        for i in range(n):
            counts[labels[i]] += weight[i]
        for j in range(d):
            for i in range(n):
                sums[labels[i], j] += weight[i] * columns[j, i]
        for k in range(K):
            if counts[k] > 0.0:
                centres[k] = sums[k] / counts[k]
    _assign(columns, centres, labels)


@njit(nogil=True, cache=True)
def _moments(columns, weight, labels, counts, means, scatter):
    d, n = columns.shape
    for i in range(n):
        counts[labels[i]] += weight[i]
    for j in range(d):
        for i in range(n):
            means[labels[i], j] += weight[i] * columns[j, i]
    for k in range(len(counts)):
        if counts[k] > 0.0:
            means[k] /= counts[k]
    gap = np.empty(d)
    for i in range(n):
        k = labels[i]
        for j in range(d):
            gap[j] = columns[j, i] - means[k, j]
        if scatter.shape[1] == 1:
            for j in range(d):
                scatter[k, 0, j] += weight[i] * gap[j] * gap[j]
            continue
        for j in range(d):
            weighted = weight[i] * gap[j]
            for m in range(d):
                scatter[k, j, m] += weighted * gap[m]


def seed(columns: Floats, weight: Floats, n_clusters: int, random_state: np.random.RandomState) -> Floats:
    """Return centres (K, d) far apart: greedy k-means++ (Arthur & Vassilvitskii 2007), as scikit-learn does it.

    Parameters
    ----------
    columns : ndarray (d, n)
        The rows' columns.
    weight : ndarray (n,)
        Positive.
    """
    shares = random_state.uniform(size=(n_clusters, 2 + int(np.log(n_clusters))))
    centres = np.empty((n_clusters, len(columns)))
    _seed(columns, weight, shares, centres)
    return centres


def lloyd(columns: Floats, weight: Floats, centres: Floats, max_iter: int) -> NDArray[np.int64]:
    """Return the rows' clusters (n,) after k-means from `centres` (K, d); with ``max_iter=0`` the nearest centres.

    A cluster without rows stays where it is.
    """
    labels = np.empty(columns.shape[1], dtype=np.int64)
    _lloyd(columns, weight, np.array(centres, order="C"), labels, max_iter)
    return labels


def cluster_moments(
    columns: Floats, weight: Floats, labels: NDArray[np.int64], n_clusters: int, *, diagonal: bool
) -> tuple[Floats, Floats, Floats]:
    """Return the clusters' weights (K,), means (K, d) and scatters (K, d, d) about them, or their diagonals (K, d)."""
    K, d = n_clusters, len(columns)
    counts, means, scatter = np.zeros(K), np.zeros((K, d)), np.zeros((K, 1 if diagonal else d, d))
    _moments(columns, weight, labels, counts, means, scatter)
    return counts, means, scatter[:, 0] if diagonal else scatter
