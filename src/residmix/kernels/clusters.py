"""Clusters of rows around centres: seeding, Lloyd's iterations and the clusters' moments.

Columns of all rows lie side by side. Only the distances are worth a compiled loop: starts are looked for on some ten
thousand rows at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import small, squared_distances

__all__ = ["cluster_moments", "lloyd", "seed"]

Floats = NDArray[np.float64]

# Numbers, rows x clusters x runs, up to which runs go side by side.
MOST_NUMBERS = 1 << 17


def seed(
    columns: Floats, weight: Floats, n_clusters: int, random_state: np.random.RandomState, runs: int = 1
) -> Floats:
    """Return centres (runs, K, d) far apart: greedy k-means++ (Arthur & Vassilvitskii 2007), as scikit-learn does it.

    Parameters
    ----------
    columns : ndarray (d, n)
        The rows' columns.
    weight : ndarray (n,)
        Positive.
    runs : int
        How often to do it: side by side if rows are few.
    """
    shares = random_state.uniform(size=(runs, n_clusters, 2 + int(np.log(n_clusters))))
    together = _together(columns, n_clusters, runs)
    parts = [_seeded(columns, weight, shares[i : i + together]) for i in range(0, runs, together)]
    return np.concatenate(parts)


def _together(columns: Floats, n_clusters: int, runs: int) -> int:
    """Return how many runs go side by side: what fits a cache."""
    return int(min(runs, max(1, MOST_NUMBERS // (columns.shape[1] * n_clusters))))


def _seeded(columns: Floats, weight: Floats, shares: Floats) -> Floats:
    (d, n), (runs, K, _), every = columns.shape, shares.shape, np.arange(len(shares))
    plain = small(n, K * d)
    centres = np.empty((runs, K, d))
    chance, closest = np.broadcast_to(weight, (runs, n)), np.full((runs, n), np.inf)
    for k in range(K):
        total = np.cumsum(chance, axis=1)
        drawn = shares[:, k, : None if k else 1] * total[:, -1:]
        # the row at each share of the total weight; where all of it is used up, the last row that has any
        rows = np.stack([np.searchsorted(t, u, side="right") for t, u in zip(total, drawn, strict=True)])
        rows = np.minimum(rows, [[np.searchsorted(t, t[-1])] for t in total])
        trials = squared_distances(columns, columns.T[rows.ravel()], plain=plain).reshape(*rows.shape, n)
        np.minimum(trials, closest[:, None], out=trials)
        best = (trials @ weight).argmin(axis=1)
        centres[:, k], closest = columns.T[rows[every, best]], trials[every, best]
        chance = weight * closest
    return centres


def lloyd(columns: Floats, weight: Floats, centres: Floats, max_iter: int) -> NDArray[np.int64]:
    """Return the rows' clusters (runs, n) after k-means from centres (runs, K, d); with ``max_iter=0`` the nearest.

    A cluster without rows stays where it is. Runs go on side by side until none of them changes.
    """
    runs, K, d = centres.shape
    together = _together(columns, K, runs)
    if together < runs:
        parts = np.split(centres, range(together, runs, together))
        return np.concatenate([lloyd(columns, weight, part, max_iter) for part in parts])
    plain, weighted = small(columns.shape[1], K * d), (columns * weight).T
    centres, before = np.array(centres), np.empty(0, dtype=np.int64)
    for iteration in range(max_iter + 1):
        far = squared_distances(columns, centres.reshape(-1, d), plain=plain).reshape(runs, K, -1)
        labels, least = np.zeros(far[:, 0].shape, dtype=np.int64), far[:, 0].copy()
        for k in range(1, K):
            np.copyto(labels, k, where=far[:, k] < least)
            np.minimum(far[:, k], least, out=least)
        if iteration == max_iter or np.array_equal(labels, before):
            break
        before, member = labels, (labels[:, None] == np.arange(K)[:, None]).astype(np.float64)
        counts = (member @ weight)[:, :, None]
        np.divide(member @ weighted, counts, out=centres, where=counts > 0)
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
