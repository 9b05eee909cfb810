"""The M-step of full covariances as a compiled loop: on a few hundred rows numpy's calls outlast the rows."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from residmix.moments.compiled import compiled

__all__ = ["full_step"]


@compiled
def full_step(weight, shift, scatter, old_means, floor, cancelled, reg_covar, weights, means, covariances, e):
    """Do what `residmix.families.m_step` does, up to the factors, if nothing is out of the ordinary.

    Parameters
    ----------
    weight, shift, scatter : (K,), (K, d), (K, d, d)
        Moments about `old_means` (K, d).
    floor, cancelled, reg_covar : float
        `m_step` has the weight a component is alive above, and how far a mean may jump.
    weights, means, covariances : (K,), (K, d), (K, d, d)
        Filled.
    e : (d,)
        Scratch.

    Returns
    -------
    bool
        False if a component died, or its mean jumped too far for the digits there are: then what was filled is of no
        use.
    """
    K, d = shift.shape
    total = 0.0
    for k in range(K):
        if not weight[k] > floor:
            return False
        total += weight[k]
    for k in range(K):
        weights[k] = weight[k] / total
        for j in range(d):
            e[j] = shift[k, j] / weight[k]
            means[k, j] = old_means[k, j] + e[j]
        for j in range(d):
            for i in range(j + 1):
                value = 0.5 * (scatter[k, i, j] + scatter[k, j, i]) / weight[k] - e[i] * e[j]
                covariances[k, i, j] = covariances[k, j, i] = value
            covariances[k, j, j] += reg_covar
            if e[j] ** 2 > cancelled * abs(covariances[k, j, j]):
                return False
    return True
