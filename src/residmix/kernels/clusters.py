"""Clusters of rows around centres: seeding, Lloyd's iterations and the clusters' moments.

Columns of all rows lie side by side. Only the distances are worth a compiled loop: starts are looked for on some ten
thousand rows at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import squared_distances

__all__ = ["cluster_moments", "lloyd", "seed"]

Floats = NDArray[np.float64]

# Numbers, rows x clusters x runs, up to which runs go side by side.
MOST_NUMBERS = 1 << 17
# Numbers, rows x clusters x features, up to which seeds are found without a compiled loop: the whole search takes less
# time than importing the compiler.
FEW_NUMBERS = 1 << 16


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
    # what fits a cache goes side by side
    together = int(min(runs, max(1, MOST_NUMBERS // (columns.shape[1] * n_clusters))))
    parts = [_seeded(columns, weight, shares[i : i + together]) for i in range(0, runs, together)]
    return np.concatenate(parts)


def _seeded(columns: Floats, weight: Floats, shares: Floats) -> Floats:
    (d, n), (runs, K, _), every = columns.shape, shares.shape, np.arange(len(shares))
    plain = n * K * d <= FEW_NUMBERS
    centres = np.empty((runs, K, d))
    chance, closest = np.broadcast_to(weight, (runs, n)), np.full((runs, n), np.inf)
    for k in range(K):
        total = np.cumsum(chance, axis=1)
        drawn = shares[:, k, : None if k else 1] * total[:, -1:]
        # the row at each share of the total weight; where all of it is used up, the last row that has any
        rows = np.stack([t.searchsorted(u, side="right") for t, u in zip(total, drawn, strict=True)])
        if rows.max() == n:
            rows = np.minimum(rows, [[t.searchsorted(t[-1])] for t in total])
        trials = squared_distances(columns, columns.T[rows.ravel()], plain=plain).reshape(*rows.shape, n)
        np.minimum(trials, closest[:, None], out=trials)
        best = (trials @ weight).argmin(axis=1)
        centres[:, k], closest = columns.T[rows[every, best]], trials[every, best]
        chance = weight * closest
    return centres


def lloyd(columns: Floats, weight: Floats, centres: Floats, max_iter: int) -> NDArray[np.int64]:
    """Return the rows' clusters (runs, n) after k-means from centres (runs, K, d); with ``max_iter=0`` the nearest.

    A cluster without rows stays where it is. Runs go on side by side until none of them changes.

    Parameters
    ----------
    columns : ndarray (d, n) or (runs, d, n)
        The rows' columns; the same for all runs, or each in coordinates of its own.
    weight : ndarray (n,)
    centres : ndarray (runs, K, d)
    max_iter : int
    """
    runs, K, _ = centres.shape
    together = min(runs, max(1, MOST_NUMBERS // (columns.shape[-1] * K)))
    if together < runs:
        parts = range(0, runs, together)
        own = columns.ndim == 3
        return np.concatenate(
            [
                lloyd(columns[i : i + together] if own else columns, weight, centres[i : i + together], max_iter)
                for i in parts
            ]
        )
    weighted, centres = (columns * weight).swapaxes(-1, -2), np.array(centres)
    moving, own = np.arange(runs), columns.ndim == 3
    for _ in range(max_iter):
        now = centres[moving]
        far = _distances(columns[moving] if own else columns, now)
        # of rows as near to two clusters both have a share
        member = (far == far.min(axis=1)[:, None]).astype(np.float64)
        counts = (member @ weight)[:, :, None]
        following = member @ (weighted[moving] if own else weighted)
        np.divide(following, counts, out=following, where=counts > 0)
        following = np.where(counts > 0, following, now)
        centres[moving] = following
        moving = moving[(following != now).any(axis=(1, 2))]
        if not len(moving):
            break
    return np.asarray(_distances(columns, centres).argmin(axis=1), dtype=np.int64)


def _distances(columns: Floats, centres: Floats) -> Floats:
    """Return half the squared distances (runs, K, n), less what is the same for all clusters."""
    runs, K, d = centres.shape
    along = centres @ columns if columns.ndim == 3 else (centres.reshape(-1, d) @ columns).reshape(runs, K, -1)
    half = 0.5 * np.einsum("rkj,rkj->rk", centres, centres)[:, :, None]
    return np.asarray(np.subtract(half, along, out=along), dtype=np.float64)


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
