r"""Greedy merging of components: each time the two whose merging costs the least likelihood.

Merging i and j, which keeps weight, mean and covariance of the two, costs about

.. math:: \tfrac12 [(n_i + n_j) \log |\Sigma_{ij}| - n_i \log |\Sigma_i| - n_j \log |\Sigma_j|]

for rows n (Runnalls 2007, "Kullback-Leibler approach to Gaussian mixture reduction", IEEE Trans. Aerosp. Electron.
Syst. 43).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["merged_down"]

Floats = NDArray[np.float64]


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
