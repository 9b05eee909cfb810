"""Moves from one optimum to the next: a component gives up its rows, and another one's rows become two; or the rows of
two are cut in another way.

Where EM ends short of the best, one component most often has the rows of two clusters while two have those of one
(Chen, Song & Xi 2024, "Local minima structures in Gaussian mixture models", IEEE Trans. Inform. Theory 70). Ueda,
Nakano, Ghahramani & Hinton (2000), "SMEM algorithm for mixture models", Neural Computation 12, merge and split at a
time; here all pairs go side by side, and the likelihood tells which of them pay. Rows are cut across axes, and into a
core and what lies around it, as where a dense cluster lies within a wide one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.iteration.estep import Problem, log_joint
from residmix.mixture.params import MixtureParams

__all__ = ["moved"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# Weight that rows have at least, for each of their directions, if they are to become two components.
ENOUGH = 4.0
# Moves up to which all ways to cut are tried.
MOST_MOVES = 120
# Squared distance, in standard deviations, that a row in the middle of a core counts as.
MIDDLE = 1e-3
# Steps towards the two clusters along a direction.
STEPS = 8
# Share of the largest variance below which rows lie in a plane.
FLAT = 1e-10


def moved(y: Floats, w: Floats, params: MixtureParams) -> Labels:
    """Return the clusterings (runs, n) of rows that come of every move from a mixture, or none.

    Parameters
    ----------
    y : ndarray (n, d)
    w : ndarray (n,)
    params : MixtureParams
    """
    K, d = params.means.shape
    joint = log_joint(y, Problem.of(params, n_rows=len(y))).T
    mine = joint.argmax(axis=0)
    member = mine == np.arange(K)[:, None]
    first, second = np.triu_indices(K, 1)
    groups = np.concatenate([member, member[first] | member[second]])
    enough = groups @ w >= ENOUGH * (d + 1)
    if not enough.any():
        return np.empty((0, len(y)), dtype=np.int64)
    halves, whose = _halves(y, w, groups, np.flatnonzero(enough), max(1, MOST_MOVES // max(1, K * (K - 1))))
    single = whose < K
    # a component's half takes the name of one whose rows go to their next best
    joint[mine, np.arange(len(y))] = -np.inf
    without = np.where(member, joint.argmax(axis=0), mine)
    gone, half = np.meshgrid(np.arange(K), np.flatnonzero(single))
    apart = gone != whose[half]
    gone, half = gone[apart], half[apart]
    given_up = np.where(halves[half], gone[:, None], without[gone])
    pair = whose[~single] - K
    again = np.where(
        halves[~single], first[pair][:, None], np.where(groups[whose[~single]], second[pair][:, None], mine)
    )
    return np.concatenate([given_up, again]).astype(np.int64)


def _halves(
    y: Floats, w: Floats, groups: NDArray[np.bool_], chosen: NDArray[np.intp], ways: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return halves (cuts, n) of groups of rows, and of which group each is one."""
    share = groups[chosen] * w
    total = share.sum(axis=1)
    centred = y - ((share @ y) / total[:, None])[:, None]
    weighted = centred * share[:, :, None]
    covariance = weighted.swapaxes(1, 2) @ centred / total[:, None, None]
    values, axes = np.linalg.eigh(covariance)
    flat = values <= FLAT * values[:, -1:]
    to = axes / np.sqrt(np.where(flat, np.inf, values))[:, None]
    white = centred @ to
    square = (white**2).sum(axis=2)
    # along the longest axis; a core and what lies around it; and where rows are least normal, see
    # `residmix.mixture.starts.directions`
    cuts = [np.einsum("gnj,gj->gn", centred, axes[:, :, -1]), np.log(square + MIDDLE)][:ways]
    if y.shape[1] > 1 and ways > len(cuts):
        squared = share * square
        _, vectors = np.linalg.eigh((white * squared[:, :, None]).swapaxes(1, 2) @ white)
        skew = np.einsum("gn,gnj->gj", squared, white)
        rest = [vectors[:, :, 0], vectors[:, :, -1], skew][: ways - len(cuts)]
        cuts += [np.einsum("gnj,gj->gn", white, v) for v in rest]
    p = np.stack(cuts, axis=1).reshape(-1, len(y))
    whose = np.repeat(np.arange(len(chosen)), len(cuts))
    return _parted(p, share[whose], groups[chosen][whose]), chosen[whose]


def _parted(p: Floats, share: Floats, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows inside are in another of two clusters of values p (cuts, n) than the first one."""
    # k-means from the ends
    low, high = np.where(inside, p, np.inf).min(axis=1), np.where(inside, p, -np.inf).max(axis=1)
    weighted, total = p * share, share.sum(axis=1)
    whole = weighted.sum(axis=1)
    for _ in range(STEPS):
        upper = p > (0.5 * (low + high))[:, None]
        count, first = np.einsum("cn,cn->c", upper, share), np.einsum("cn,cn->c", upper, weighted)
        with np.errstate(all="ignore"):
            high = np.where(count > 0, first / count, high)
            low = np.where(count < total, (whole - first) / (total - count), low)
    upper = p > (0.5 * (low + high))[:, None]
    # which way an axis points is chance, and must not tell which half is which
    first = upper[np.arange(len(p)), inside.argmax(axis=1)]
    return np.asarray((upper ^ first[:, None]) & inside)
