r"""Which cluster of one group of rows is which cluster of another one, when either may have clusters the other lacks.

Groups' mixtures are Gaussians with weights, means and covariances, so candidate matches need no row. Say that
component l of a group is component k of those found so far: the group is shifted by the difference of their means,
and of the components of both, twice as many as wanted, the two whose merging costs the least likelihood are merged
until as many as wanted are left. Merging i and j, which keeps weight, mean and covariance of the two, costs about

.. math:: \tfrac12 [(n_i + n_j) \log |\Sigma_{ij}| - n_i \log |\Sigma_i| - n_j \log |\Sigma_j|]

for rows n (Runnalls 2007, "Kullback-Leibler approach to Gaussian mixture reduction", IEEE Trans. Aerosp. Electron.
Syst. 43). The matches of least cost are kept, group by group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.params import MixtureParams, make_params

__all__ = ["likely_matches", "merged_down"]

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


def merged_down(n_left: int, rows: Floats, means: Floats, covariances: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Merge the two components whose merging costs the least until `n_left` are left, in each of several mixtures.

    Parameters
    ----------
    n_left : int
    rows, means, covariances : ndarray (p, m), (p, m, d), (p, m, d, d)

    Returns
    -------
    cost : ndarray (p,)
        Log-likelihood that was lost, about.
    rows, means, covariances : ndarray (p, n_left), (p, n_left, d), (p, n_left, d, d)
    """
    rows, means, covariances = rows.copy(), means.copy(), covariances.copy()
    (p, m), every = rows.shape, np.arange(len(rows))
    logs = np.linalg.slogdet(covariances)[1]
    costs = np.full((p, m, m), np.inf)
    for i in range(m):
        costs[:, i, :i] = _merged(rows, means, covariances, logs, np.full(p, i))[0][:, :i]
    alive, lost = np.ones((p, m), dtype=bool), np.zeros(p)
    for _ in range(m - n_left):
        i, j = np.divmod(costs.reshape(p, -1).argmin(axis=1), m)
        lost += costs[every, i, j]
        _, both, mean, covariance, log = (part[every, j] for part in _merged(rows, means, covariances, logs, i))
        rows[every, i], means[every, i], covariances[every, i], logs[every, i] = both, mean, covariance, log
        alive[every, j] = False
        costs[every, j, :] = costs[every, :, j] = np.inf
        anew = np.where(alive, _merged(rows, means, covariances, logs, i)[0], np.inf)
        anew[every, i] = np.inf
        costs[every, i, :], costs[every, :, i] = anew, np.inf
    left = np.nonzero(alive)
    d = means.shape[2]
    return lost, rows[left].reshape(p, -1), means[left].reshape(p, -1, d), covariances[left].reshape(p, -1, d, d)


def _merged(
    rows: Floats, means: Floats, covariances: Floats, logs: Floats, i: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return what merging component i of each mixture with each of its components costs, and what comes of it."""
    one = np.arange(len(rows)), i
    both = rows + rows[one][:, None]
    share = rows / both
    gap = means - means[one][:, None]
    mean = means[one][:, None] + share[..., None] * gap
    covariance = (1 - share)[..., None, None] * covariances[one][:, None] + share[..., None, None] * covariances
    covariance += (share * (1 - share))[..., None, None] * gap[..., :, None] * gap[..., None, :]
    log = np.linalg.slogdet(covariance)[1]
    cost = 0.5 * (both * log - rows * logs - (rows[one] * logs[one])[:, None])
    return cost, both, mean, covariance, log
