"""Moves from one optimum to the next: a component gives up its rows, and another one's rows become two.

Where EM ends short of the best, one component most often has the rows of two clusters while two have those of one
(Chen, Song & Xi 2024, "Local minima structures in Gaussian mixture models", IEEE Trans. Inform. Theory 70). Ueda,
Nakano, Ghahramani & Hinton (2000), "SMEM algorithm for mixture models", Neural Computation 12, merge and split at a
time; here all pairs go side by side, and the likelihood tells which of them pay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import lloyd
from residmix.mixture.iteration.estep import Problem, log_joint
from residmix.mixture.params import MixtureParams
from residmix.mixture.starts.directions import directions

__all__ = ["moved"]

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

# Weight that a component has at least, for each of its directions, if it's to become two.
ENOUGH = 4.0
# Moves up to which all ways to cut are tried.
MOST_MOVES = 120


def moved(y: Floats, w: Floats, params: MixtureParams) -> Labels:
    """Return the clusterings (runs, n) of rows that come of every move from a mixture, or none.

    Parameters
    ----------
    y : ndarray (n, d)
    w : ndarray (n,)
    params : MixtureParams
    """
    K, d = params.means.shape
    joint = log_joint(y, Problem.of(params, n_rows=len(y)))
    mine = joint.argmax(axis=1)
    best_two = np.argsort(-joint, axis=1, kind="stable")[:, :2]
    found: list[Labels] = []
    for split in range(K):
        own = np.flatnonzero(mine == split)
        if w[own].sum() < ENOUGH * (d + 1):
            continue
        halves = _halves(y[own], w[own])[: max(1, MOST_MOVES // (K * (K - 1)))]
        for gone in range(K):
            if gone == split:
                continue
            # its rows go to the next best one, and its name to the second half
            others = np.where(mine == gone, best_two[:, 1], mine)
            for half in halves:
                labels = others.copy()
                labels[own[half]] = gone
                found.append(labels)
    return np.array(found, dtype=np.int64).reshape(len(found), len(y))


def _halves(y: Floats, w: Floats) -> list[NDArray[np.bool_]]:
    """Return ways to cut rows in two: along their longest axis, and where they are least normal."""
    centred = y - np.average(y, axis=0, weights=w)
    d = y.shape[1]
    values, axes = np.linalg.eigh((centred * w[:, None]).T @ centred / w.sum())
    along = [centred @ axes[:, -1]]
    if d > 1 and values[0] > 1e-10 * values[-1]:
        white = centred @ (axes / np.sqrt(values))
        along += list((white @ directions(white, w, 1)).T)
    halves: list[NDArray[np.bool_]] = []
    for one in along:
        ends = np.array([[one.min()], [one.max()]])
        labels = lloyd(one[None], w, ends[None], 10)[0]
        # which way an axis points is chance, and must not tell which half is which
        halves.append(labels != labels[0])
    return halves
