"""Clusters of rows around centres: seeding, Lloyd's iterations and the clusters' moments, in compiled loops.

Columns of all rows lie side by side, so that distances are taken to many rows at once.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.compiled import compiled, piece

__all__ = ["cluster_moments", "lloyd", "seed"]

Floats = NDArray[np.float64]


@piece
def _squared_distances(columns, centres, k, out):
    """Fill `out` (n,) with those to centre k."""
    d, n = columns.shape
    for i in range(n):
        gap = columns[0, i] - centres[k, 0]
        out[i] = gap * gap
    for j in range(1, d):
        for i in range(n):
            gap = columns[j, i] - centres[k, j]
            out[i] += gap * gap


@piece
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


@compiled
def _seed(columns, weight, shares, centres, chance, closest, trial, best):
    """Fill `centres`; the last four (n,) are scratch."""
    d, n = columns.shape
    K, trials = shares.shape
    for i in range(n):
        chance[i], closest[i] = weight[i], np.inf
    for k in range(K):
        least, found = np.inf, -1
        for t in range(trials if k > 0 else 1):
            row = _draw(chance, shares[k, t])
            for j in range(d):
                centres[k, j] = columns[j, row]
            _squared_distances(columns, centres, k, trial)
            left = 0.0
            for i in range(n):
                trial[i] = min(trial[i], closest[i])
                left += weight[i] * trial[i]
            if left < least or found < 0:
                least, found = left, row
                trial, best = best, trial
        for j in range(d):
            centres[k, j] = columns[j, found]
        closest, best = best, closest
        for i in range(n):
            chance[i] = weight[i] * closest[i]


@piece
def _add_up(columns, weight, labels, counts, sums):
    """Fill `counts` (K,) and `sums` (K, d) with the clusters' weights and weighted sums."""
    d, n = columns.shape
    for k in range(len(counts)):
        counts[k] = 0.0
        for j in range(d):
            sums[k, j] = 0.0
    for i in range(n):
        counts[labels[i]] += weight[i]
    for j in range(d):
        for i in range(n):
            sums[labels[i], j] += weight[i] * columns[j, i]


@compiled
def _lloyd(columns, weight, centres, labels, max_iter, before, closest, trial, counts, sums):
    """Move `centres` and fill `labels`; what comes after `max_iter` is scratch, (n,) thrice, (K,) and (K, d)."""
    d, n = columns.shape
    K = len(centres)
    for iteration in range(max_iter + 1):
        for i in range(n):
            before[i], labels[i], closest[i] = labels[i], 0, np.inf
        for k in range(K):
            _squared_distances(columns, centres, k, trial)
            for i in range(n):
                nearer = trial[i] < closest[i]
                labels[i] = k if nearer else labels[i]
                closest[i] = trial[i] if nearer else closest[i]
        changed = iteration == 0
        for i in range(n):
            changed |= labels[i] != before[i]
        if iteration == max_iter or not changed:
            return
        _add_up(columns, weight, labels, counts, sums)
        for k in range(K):
            for j in range(d):
                if counts[k] > 0.0:
                    centres[k, j] = sums[k, j] / counts[k]


@compiled
def _moments(columns, weight, labels, counts, means, scatter, gap):
    """Fill `counts` (K,) and `means` (K, d), add to `scatter` (K, d, d), or to its diagonals (K, d, 1)."""
    (d, n), width = columns.shape, scatter.shape[2]
    _add_up(columns, weight, labels, counts, means)
    for k in range(len(counts)):
        for j in range(d):
            if counts[k] > 0.0:
                means[k, j] /= counts[k]
    for i in range(n):
        k = labels[i]
        for j in range(d):
            gap[j] = columns[j, i] - means[k, j]
        for j in range(d):
            weighted, first = weight[i] * gap[j], j if width < d else 0
            for m in range(width):
                scatter[k, j, m] += weighted * gap[first + m]


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
    _seed(columns, weight, shares, centres, *np.empty((4, columns.shape[1])))
    return centres


def lloyd(columns: Floats, weight: Floats, centres: Floats, max_iter: int) -> NDArray[np.int64]:
    """Return the rows' clusters (n,) after k-means from `centres` (K, d); with ``max_iter=0`` the nearest centres.

    A cluster without rows stays where it is.
    """
    n = columns.shape[1]
    centres = np.array(centres, order="C")
    labels, before = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    counts, sums = np.empty(len(centres)), np.empty(centres.shape)
    _lloyd(columns, weight, centres, labels, max_iter, before, np.empty(n), np.empty(n), counts, sums)
    return labels


def cluster_moments(
    columns: Floats, weight: Floats, labels: NDArray[np.int64], n_clusters: int, *, diagonal: bool
) -> tuple[Floats, Floats, Floats]:
    """Return the clusters' weights (K,), means (K, d) and scatters (K, d, d) about them, or their diagonals (K, d)."""
    K, d = n_clusters, len(columns)
    counts, means, scatter = np.empty(K), np.empty((K, d)), np.zeros((K, d, 1 if diagonal else d))
    _moments(columns, weight, labels, counts, means, scatter, np.empty(d))
    return counts, means, scatter[:, :, 0] if diagonal else scatter
