r"""Components merged into clusters by entropy: several components may describe one cluster that isn't normal.

Merging i and j lowers the entropy of the assignment by

.. math:: \sum_n w_n [h(t_{ni} + t_{nj}) - h(t_{ni}) - h(t_{nj})], \qquad h(t) = t \log t,

which is large if the two overlap. The pair that lowers it most is merged, repeatedly (Baudry, Raftery, Celeux, Lo &
Gottardo 2010, "Combining mixture components for clustering", J. Comput. Graph. Stat. 19). The density doesn't change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from residmix.mixture.iteration.beyond import settle_beyond
from residmix.mixture.iteration.estep import Problem, responsibilities
from residmix.mixture.iteration.step import block_log_joint
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = ["Merges", "elbow", "merge_by_entropy"]

Floats = NDArray[np.float64]

# Below so much entropy, per row of the two that share it most, clusters are apart: two unit balls at a distance of 4.2.
APART = 0.05


@dataclass(frozen=True)
class Merges:
    """The sequence of merges.

    Attributes
    ----------
    clusters : list of ndarray (K,)
        The cluster of each component for 1, 2, ..., K clusters.
    entropy : ndarray (K,)
        Of the assignment to 1, 2, ..., K clusters.
    shared : ndarray (K,)
        Decrease of the entropy by the last merge, per row of the two merged clusters; 0 for K.
    """

    clusters: list[NDArray[np.intp]]
    entropy: Floats
    shared: Floats


def merge_by_entropy(rows: Rows, problem: Problem) -> Merges:
    """Merge two by two until one cluster is left; K - 1 passes over the rows."""
    K = problem.params.n_components
    clusters, pairs = np.arange(K), _upper(K)
    drops, entropy, found, shared = np.zeros((K, K)), np.zeros(K), [clusters], np.zeros(K)
    for left in range(K, 1, -1):
        sums = rows.fold(partial(_sums, problem, clusters, pairs), np.add)
        entropy[left - 1], weight = sums[0], sums[1 : 1 + left]
        drops[pairs[:, 0], pairs[:, 1]] = sums[1 + left :]
        upper = np.where(np.triu(np.ones_like(drops), 1), drops, -np.inf)
        one, two = map(int, np.unravel_index(int(np.argmax(upper)), upper.shape))
        shared[left - 2] = drops[one, two] / max(weight[one] + weight[two], np.finfo(float).tiny)
        clusters = np.where(clusters == two, one, clusters)
        clusters = clusters - (clusters > two)
        found.append(clusters)
        drops = np.delete(np.delete(drops, two, axis=0), two, axis=1)
        others = np.delete(np.arange(left - 1), one)
        pairs = np.column_stack([np.minimum(others, one), np.maximum(others, one)])
    return Merges(found[::-1], entropy, shared)


def _upper(K: int) -> NDArray[np.intp]:
    return np.column_stack(np.triu_indices(K, 1))


def _sums(problem: Problem, clusters: NDArray[np.intp], pairs: NDArray[np.intp], block: Block) -> Floats:
    """Return entropy, rows of each cluster and what merging pairs would lower the entropy by."""
    share = responsibilities(settle_beyond(block_log_joint(problem, block), block.X, problem.params))
    t = np.stack([share[:, np.flatnonzero(clusters == c)].sum(axis=1) for c in range(clusters.max() + 1)])
    w = np.ones(len(share)) if block.weight is None else block.weight
    h = xlogy(t, t)
    both = t[pairs[:, 0]] + t[pairs[:, 1]]
    lowered = (xlogy(both, both) - h[pairs[:, 0]] - h[pairs[:, 1]]) @ w
    noise = xlogy(share[:, len(clusters) :], share[:, len(clusters) :]).sum(axis=1)
    return np.concatenate([[-(h @ w).sum() - noise @ w], t @ w, lowered])


def elbow(merges: Merges) -> int:
    """Return the number of clusters where two straight lines meet that fit the entropies best.

    No components are merged if even the most overlapping two are separate (`APART`), or if there are fewer than three.
    """
    K = len(merges.entropy)
    if K < 3 or merges.shared.max() < APART:
        return K
    number = np.arange(1, K + 1, dtype=float)
    misfit = [
        _misfit(number[: c + 1], merges.entropy[: c + 1]) + _misfit(number[c:], merges.entropy[c:])
        for c in range(1, K - 1)
    ]
    return int(np.argmin(misfit)) + 2


def _misfit(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float(((y - x * (x @ y) / (x @ x)) ** 2).sum())
