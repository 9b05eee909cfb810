r"""An E-step that looks at each row's near components only.

A row's density is summed over a few components, a set :math:`S_i` of its own, which is a lower bound of the density.
With the sets as they are, EM is exact EM of a model where a row may only come from its set: the bound :math:`\sum_i w_i
\log \sum_{k \in S_i} \pi_k N(x_i \mid \mu_k, \Sigma_k)` never decreases. Nor does it if a set is replaced by the
likeliest of all components (truncated variational EM: Forster & Lucke 2018, "Can clustering scale sublinearly with its
clusters? A variational EM acceleration of GMMs and k-means", AISTATS, who look at neighbours in each iteration).

The pairs of rows and components are gathered by component, whose densities the loops of a mixture of one give, and
whose moments a matrix product: no loop is needed for this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.iteration.estep import MixtureMoments, Problem, log_joint, normalised

__all__ = ["likeliest", "near_block", "near_block_rows", "near_joint", "own_problems"]

Floats = NDArray[np.float64]
Sets = NDArray[np.int32]

# Rows of a block for each component, so that there are enough for a loop; the most rows of a block, and their numbers.
EACH, MOST_ROWS, MOST_NUMBERS = 512, 1 << 17, 1 << 23
# A share this small of a row adds nothing to a sum of rows.
NO_SHARE = 1e-14


def near_block_rows(n_components: int, n_features: int) -> int:
    """Return the block length for a problem, whatever the number of threads."""
    wanted = min(EACH * n_components, MOST_ROWS, MOST_NUMBERS // n_features)
    return int(2 ** max(np.floor(np.log2(max(wanted, 1))), 10))


def own_problems(problem: Problem, *, weighted: bool) -> list[Problem]:
    """Return the mixtures of each component alone; `weighted` with its weight, or a prior by row will replace it."""
    even = replace(problem.params, weights=np.ones(1))
    constant = problem.weighted if weighted else problem.constant
    return [
        replace(
            problem,
            params=even,
            means=problem.means[k : k + 1],
            factors=problem.factors[k : k + 1],
            constant=constant[k : k + 1],
        )
        for k in range(len(problem.means))
    ]


def _pairs(sets: Sets) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each component and its places in the raveled sets; a negative entry is none."""
    # numbers of two bytes are sorted in one go over them
    flat = sets.ravel() if sets.max(initial=0) >= 1 << 15 else sets.ravel().astype(np.int16)
    order = np.argsort(flat, kind="stable")
    sorted_ = flat[order]
    ends = np.flatnonzero(np.diff(sorted_, append=-2)) + 1
    begin = 0
    for end in ends.tolist():
        if sorted_[begin] >= 0:
            yield int(sorted_[begin]), order[begin:end]
        begin = end


def near_joint(X: NDArray[np.floating], own: list[Problem], sets: Sets, log_prior: Floats | None = None) -> Floats:
    """Return log p(x, k) for the components of each row's set, (b, C); -inf for negative entries.

    Parameters
    ----------
    X : ndarray (b, d)
    own : list of Problem
        As `own_problems` returns them.
    sets : ndarray of int (b, C)
    log_prior : ndarray (b, K), optional
    """
    C = sets.shape[1]
    joint = np.full(sets.size, -np.inf)
    for k, places in _pairs(sets):
        rows = places // C
        prior = None if log_prior is None else log_prior[rows, k : k + 1]
        joint[places] = log_joint(X[rows], own[k], log_prior=prior)[:, 0]
    return joint.reshape(sets.shape)


def near_block(
    X: NDArray[np.floating],
    problem: Problem,
    own: list[Problem],
    sets: Sets,
    *,
    log_prior: Floats | None = None,
    weight: Floats | None = None,
    extra: Floats | None = None,
    with_moments: bool = True,
) -> MixtureMoments:
    """Return what `residmix.mixture.iteration.estep.mixture_block` does, with a density over near components only.

    Parameters
    ----------
    X : ndarray (b, d)
    problem, own : Problem, list of Problem
        The mixture, and its components alone.
    sets : ndarray of int (b, C)
    log_prior, weight, extra, with_moments
        As in `mixture_block`.
    """
    joint = near_joint(X, own, sets, log_prior)
    (shares, density), counts = normalised(joint), np.ones(len(X)) if weight is None else weight
    counted = counts > 0
    params = problem.params
    pooled = params.family.shared and not params.family.diagonal and extra is None and not params.by_component
    # of whitened rows the means are elsewhere
    centres = params.means if problem.rotation is not None else problem.means
    if extra is not None:
        centres = np.hstack([np.zeros((len(centres), extra.shape[1])), centres])
    K, m = centres.shape
    moments = MixtureMoments(
        np.zeros(K),
        np.zeros((K, m)),
        np.zeros((m, m) if pooled else (K, m, m) if problem.full else (K, m)),
        float(counts[counted] @ density[counted]),
        float(counts.sum()),
        int(np.count_nonzero(counted)),
    )
    if with_moments:
        shares = np.where(np.isfinite(density)[:, None], shares * counts[:, None], 0.0)
        there = np.where(shares > NO_SHARE * counts.max(initial=0.0), sets, -1)
        _add(moments, X, extra, centres, there, shares, pooled)
        if params.family.isotropic and moments.scatter.ndim == 2:
            moments.scatter[:] = moments.scatter.mean(axis=1, keepdims=True)
    return moments


def _add(
    moments: MixtureMoments,
    X: NDArray[np.floating],
    extra: Floats | None,
    centres: Floats,
    sets: Sets,
    shares: Floats,
    pooled: bool,
) -> None:
    """Add the rows' shares in the components of their sets to empty moments."""
    scatter, weights = moments.scatter, shares.ravel()
    for k, places in _pairs(sets):
        rows, share = places // sets.shape[1], weights[places]
        x = X[rows] if extra is None else np.hstack([extra[rows], X[rows]])
        away = x - centres[k]
        moments.weight[k] = share.sum()
        if scatter.ndim == 3 or pooled:
            root = np.sqrt(share)
            away *= root[:, None]
            moments.shift[k] = root @ away
            square = away.T @ away
            if pooled:
                scatter += square
            else:
                scatter[k] = square
        else:
            moments.shift[k] = share @ away
            scatter[k] = share @ np.square(away, out=away)


def likeliest(joint: Floats, size: int) -> tuple[Sets, Floats]:
    """Return the `size` likeliest of all components, joint (b, K), in their order, and the log-density over them."""
    near = np.sort(np.argpartition(-joint, size - 1, axis=1)[:, :size], axis=1)
    return near.astype(np.int32), normalised(np.take_along_axis(joint, near, 1))[1]
