r"""Which components are one cluster, and the coordinates in which clusters are told apart.

A cluster that isn't normal is described by several components. Clusters are found first, with a component each, and
each of them is divided: otherwise components that describe a shape at one group may be matched with such as describe
another cluster at another. Two of the first components are one cluster if rows of one are taken for rows of the other
with a probability of more than `MISTAKEN` (Hennig 2010),

.. math:: \max_{ij} \sum_n w_n t_{ni} t_{nj} / \sum_n w_n t_{ni}

with t the probabilities of components given the rows; the pair with the largest one is merged, repeatedly. A mixture of
several groups is one of clusters if no two of its components would be merged in any group, and a division is one of
clusters if all parts of each would be. Others may be likelier, with parts of a cluster here and another cluster there.

Rosenblatt's transform goes through coordinates in turn. In one that mixes the clusters, rows of one may end in another;
where the first coordinates tell them apart, they stay. Each direction in turn is therefore the one that leaves least
overlap, as Bhattacharyya's coefficients measure it, of all pairs of clusters together. Fisher's directions don't: the
first one has the largest variance between clusters, however much two of them coincide in it.

References
----------
Hennig, "Methods for merging Gaussian mixture components", Advances in Data Analysis and Classification 4:3-34, 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from residmix.errors import unnoted
from residmix.mixture.gaussian import GaussianMixture

__all__ = ["apart", "divided", "kept_shares", "merged", "telling"]

Floats = NDArray[np.float64]

# Two components of unit spread and equal weight are mistaken for each other so often at a distance of 3.
MISTAKEN = 0.1
# Components of a smaller share of a group's rows say nothing of it.
SMALL = 0.02
# Directions that are tried before the best one is improved, and the most that are chosen for what they tell.
TRIED, MOST = 500, 8
# Directions between means whose length is below this share of the longest are rounding.
FLAT = 1e-6


def merged(share: Floats, weight: Floats) -> NDArray[np.intp]:
    """Return the cluster of each component (K,) from the components' probabilities (n, K) of rows."""
    clusters = np.arange(share.shape[1])
    while len(share := np.asarray(share, dtype=np.float64)) and share.shape[1] > 1:
        both = (share * weight[:, None]).T @ share
        np.fill_diagonal(both, 0.0)
        mistaken = both / np.maximum(weight @ share, 1e-300)[:, None]
        one, two = sorted(map(int, np.unravel_index(int(mistaken.argmax()), mistaken.shape)))
        if mistaken.max() <= MISTAKEN:
            break
        share = np.delete(share, two, axis=1) + share[:, [two]] * (np.arange(share.shape[1] - 1) == one)
        clusters = np.where(clusters == two, one, clusters)
        clusters = clusters - (clusters > two)
    return np.asarray(clusters, dtype=np.intp)


def apart(share: Floats, weight: Floats, d: int) -> bool:
    """Tell whether no two components are one cluster in these rows, but for such as hardly any of them are of."""
    mass = weight @ share
    here = mass > max(d + 2.0, SMALL * float(mass.sum()))
    return bool(len(np.unique(merged(share[:, here], weight))) == here.sum())


def divided(
    u: Floats, group: NDArray[np.intp], labels: NDArray[np.intp], weight: Floats, parts: int, random_state: int
) -> NDArray[np.intp] | None:
    """Return the part of its cluster that each row (n,) of cluster `labels` is in; None if there are too few rows.

    Clusters have the same mean and covariance in all groups before they're divided, so that parts are of their shape.
    """
    made = np.zeros(len(u), dtype=np.intp)
    for cluster in np.unique(labels):
        rest = np.empty_like(u)
        inside = labels == cluster
        for g in np.unique(group[inside]):
            here = np.flatnonzero(inside & (group == g))
            rest[here] = u[here] - weight[here] @ u[here] / max(weight[here].sum(), 1e-300)
            pooled = (rest[here] * weight[here, None]).T @ rest[here] / max(weight[here].sum(), 1e-300)
            if len(here) > 2 * u.shape[1] and np.linalg.cond(pooled) < 1 / FLAT**2:
                rest[here] = solve_triangular(np.linalg.cholesky(pooled), rest[here].T, lower=True).T
        if inside.sum() < parts * (u.shape[1] + 2):
            return None
        with unnoted():
            mixture = GaussianMixture(parts, random_state=random_state).fit(rest[inside], sample_weight=weight[inside])
        made[inside] = mixture.predict(rest[inside])
        if len(np.unique(made[inside])) < parts:
            return None
    return made


def kept_shares(own: Floats, target: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Return log weights (n, K): within clusters those of `target`, of clusters as a whole those of `own`."""
    made = np.empty_like(own)
    for cluster in np.unique(clusters):
        here = np.flatnonzero(clusters == cluster)
        whole = np.logaddexp.reduce(own[:, here], axis=1) - np.logaddexp.reduce(target[:, here], axis=1)
        made[:, here] = own[:, here] if len(here) == 1 else target[:, here] + whole[:, None]
    return made


@dataclass(frozen=True)
class _Pairs:
    """Pairs of components of different clusters, at m design rows, in coordinates of unit covariance within.

    Attributes
    ----------
    apart : ndarray (m, P, d)
        Differences of means.
    within : ndarray (P, 2, d, d)
        Covariances.
    worth : ndarray (m, P)
        Square root of the product of the two weights, times what earlier directions leave of the overlap.
    """

    apart: Floats
    within: Floats
    worth: Floats

    def overlaps(self, w: Floats) -> Floats:
        """Return Bhattacharyya's coefficients (m, P) along the direction w (d,)."""
        one, two = (np.einsum("pij,i,j->p", self.within[:, side], w, w) for side in (0, 1))
        both = np.maximum(one + two, 1e-300)
        return np.asarray(np.sqrt(2 * np.sqrt(one * two) / both) * np.exp(-0.25 * (self.apart @ w) ** 2 / both))

    def left(self, w: Floats) -> float:
        return float((self.worth * self.overlaps(w / max(float(np.linalg.norm(w)), 1e-300))).sum())


def telling(means: Floats, covariances: Floats, weights: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Return the basis (d, d), to coordinates v = u basis, whose first ones tell clusters apart best.

    Parameters
    ----------
    means : ndarray (m, K, d)
        Of the components at m design rows.
    covariances : ndarray (K, d, d)
    weights : ndarray (m, K)
    clusters : ndarray of int (K,)
        If there is one cluster, components are told apart.
    """
    K, d = covariances.shape[:2]
    if K == 1:
        return np.eye(d)
    root = np.linalg.cholesky(np.einsum("k,kij->ij", weights.mean(axis=0), covariances))
    white = solve_triangular(root, means.reshape(-1, d).T, lower=True).T.reshape(means.shape)
    within = np.stack([_whitened(root, covariance) for covariance in covariances])
    one, two = np.triu_indices(K, 1)
    if clusters.max() > 0:
        one, two = one[clusters[one] != clusters[two]], two[clusters[one] != clusters[two]]
    pairs = _Pairs(
        white[:, one] - white[:, two], np.stack([within[one], within[two]], axis=1),
        np.sqrt(weights[:, one] * weights[:, two]),
    )  # fmt: skip
    vectors = _directions(pairs)
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(d)])
    # in the order that it has when it is read from a file, so that products are the same to the bit
    return np.ascontiguousarray(solve_triangular(root.T, vectors * signs, lower=False))


def _whitened(root: Floats, covariance: Floats) -> Floats:
    half = solve_triangular(root, covariance, lower=True)
    return np.asarray(solve_triangular(root, half.T, lower=True))


def _directions(pairs: _Pairs) -> Floats:
    """Return an orthonormal basis (d, d): directions that leave least overlap, one after the other, then the others."""
    d, random = pairs.apart.shape[2], np.random.default_rng(0)
    _, length, span = np.linalg.svd(pairs.apart.reshape(-1, d), full_matrices=True)
    length = np.concatenate([length, np.zeros(d - len(length))])
    rank = min(int((length > FLAT * max(float(length[0]), 1e-300)).sum()), MOST)
    inside, chosen = span[:rank].T, np.empty((d, 0))
    while inside.shape[1] > 1:
        best = _best(pairs, inside, random)
        chosen = np.column_stack([chosen, best])
        pairs = _Pairs(pairs.apart, pairs.within, pairs.worth * pairs.overlaps(best))
        # what is left of the span, orthogonal to the chosen one
        turned = np.linalg.svd((inside.T @ best)[None], full_matrices=True)[2]
        inside = inside @ turned[1:].T
    return np.column_stack([chosen, inside, span[rank:].T])


def _best(pairs: _Pairs, inside: Floats, random: np.random.Generator) -> Floats:
    """Return the direction (d,) in the span of `inside` (d, r) that leaves least overlap."""
    r = inside.shape[1]
    tried = np.vstack([np.eye(r), (pairs.apart.reshape(-1, len(inside)) @ inside)[:TRIED],
                       random.normal(size=(TRIED, r))])  # fmt: skip
    tried = tried[np.linalg.norm(tried, axis=1) > 0]  # where two means are the same
    first = min(tried, key=lambda w: pairs.left(inside @ w))
    found = minimize(lambda w: pairs.left(inside @ w), first / max(float(np.linalg.norm(first)), 1e-300)).x
    best = inside @ min((first, found), key=lambda w: pairs.left(inside @ w))
    return np.asarray(best / np.linalg.norm(best))
