r"""Matching of the clusters of groups of rows, each of which may lack some clusters.

Groups' mixtures are Gaussians with weights, means and covariances, so candidate matches need no row. Say that
component l of a group is component k of those found so far: the group is shifted by the difference of their means,
and of the components of both, twice as many as wanted, the two whose merging costs the least likelihood are merged
until as many as wanted are left (`residmix.mixture.selection.merging`).
The matches of least cost are kept, group by group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.params import MixtureParams, make_params
from residmix.mixture.selection.merging import merged_down

__all__ = ["likely_matches"]

Floats = NDArray[np.float64]

# Matches kept from group to group; and of each group's components, the heaviest, that are tried.
KEPT = 4
TRIED = 4


def likely_matches(
    mixtures: Sequence[MixtureParams], sizes: Sequence[float], kept: int = KEPT
) -> list[tuple[MixtureParams, list[Floats]]]:
    """Return the mixtures of all groups together, full covariances, and the groups' shifts, the likeliest match first.

    Parameters
    ----------
    mixtures : sequence of MixtureParams
        Of each group, of K components; those of the first one aren't shifted.
    sizes : sequence of float
        The groups' rows.
    """
    K, d = mixtures[0].means.shape
    rows, means, covariances = (part[None] for part in _components(mixtures[0], sizes[0]))
    shifts, costs = [[np.zeros(d)]], np.zeros(1)
    for mixture, size in zip(mixtures[1:], sizes[1:], strict=True):
        own_rows, own_means, own_covariances = _components(mixture, size)
        pairs = [
            (s, k, l)
            for s in range(len(costs))
            for k in np.argsort(-rows[s], kind="stable")[:TRIED]
            for l in np.argsort(-own_rows, kind="stable")[:TRIED]
        ]
        state, k, l = np.array(pairs).T
        shift = own_means[l] - means[state, k]
        moved = own_means - shift[:, None, :]
        cost, rows, means, covariances = merged_down(
            K,
            np.hstack([rows[state], np.tile(own_rows, (len(pairs), 1))]),
            np.concatenate([means[state], moved], axis=1),
            np.concatenate([covariances[state], np.tile(own_covariances, (len(pairs), 1, 1, 1))], axis=1),
        )
        cost = cost + costs[state]
        best = np.argsort(cost, kind="stable")[:kept]
        shifts = [[*shifts[state[i]], shift[i]] for i in best]
        costs, rows, means, covariances = cost[best], rows[best], means[best], covariances[best]
    found = [make_params(n / n.sum(), mean, cov, "full") for n, mean, cov in zip(rows, means, covariances, strict=True)]
    return list(zip(found, shifts, strict=True))


def _components(mixture: MixtureParams, size: float) -> tuple[Floats, Floats, Floats]:
    return size * np.maximum(mixture.weights, 1e-6), mixture.means, mixture.full_covariances()
