"""One level of a forest of decision trees: where to split each node, and its rows in the order of the nodes below.

Features are given as codes of a few values, so that all cuts of a feature are judged from one table of counts. Sums are
of whole numbers, so they are exact in any order, and the compiled loop beside this function (see
`residmix.kernels.pairs`) grows the same trees.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "GAIN", "inverse", "split_nodes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Codes of a feature.
BINS = 64
# By which factor a split must leave more between its sides than there was: else it is rounding.
GAIN = 1 + 1e-12
# Numbers of the tables that are held together.
_AT_ONCE = 1 << 21


@lru_cache(maxsize=4)
def inverse(n: int) -> Floats:
    """Return 0 and 1/1 to 1/n: a division takes longer than all else there is to do for a cut."""
    return np.append(0.0, 1 / np.arange(1, n + 1))


def split_nodes(
    codes: NDArray[np.uint8],
    rows: Ints,
    counts: Ints,
    order: Ints,
    target: tuple[Ints, Ints, int],
    tries: int,
    min_leaf: int,
) -> tuple[Ints, Ints, Ints, Floats, Ints]:
    r"""Return of each node: feature (-1 in a leaf), greatest code of its left side and rows there; sums; rows in order.

    The split is the one with the largest :math:`\sum_s L_s^2 / n_L + \sum_s R_s^2 / n_R`, where L and R are the sums of
    the values in each slot s on the left and right: for classes (a slot each, all values 1) the smallest Gini impurity,
    for numbers (one slot) the smallest sum of squares within the sides (Breiman et al. 1984, Classification and
    Regression Trees, chapters 4 and 8).

    Parameters
    ----------
    codes : ndarray (d, n) of uint8
        Smaller than 64.
    rows : ndarray (entries,)
        Those of all nodes, node by node.
    counts : ndarray (N,)
        How many of them each node has.
    order : ndarray (N, d)
        The features in the order in which each node tries them; constant ones don't count as tried.
    target : (slots (n,), values (n,), number of slots)
        Of each row: where its value is added, and the value.
    tries : int
    min_leaf : int
        Rows that each side must have.

    Returns
    -------
    feature, cut, n_left : ndarray (N,)
    sums : ndarray (N, slots)
    rows : ndarray
        Those of the nodes that are split: of the left side, and then of the right, in their order.
    """
    slots, values, width = target
    N, d = order.shape
    node, slot, value = np.repeat(np.arange(N), counts), slots[rows], values[rows]
    sums = np.bincount(node * width + slot, value, N * width).astype(np.float64).reshape(N, width)
    feature, cut, n_left, tried = np.full(N, -1), *np.zeros((3, N), dtype=np.int64)
    best = np.square(sums).sum(axis=1) * (inverse(int(counts.max()))[counts] * GAIN)
    left = np.zeros(len(rows), dtype=bool)
    ends = np.cumsum(counts)
    step = max(1, _AT_ONCE // (BINS * width))
    for t in range(d):
        active = (tried < tries) & (counts >= 2 * min_leaf)
        if not active.any():
            break
        code = codes[np.repeat(order[:, t], counts), rows].astype(np.int64)
        gain, at, below, varied = (np.zeros(N, dtype=kind) for kind in (float, int, int, bool))
        for first in range(0, N, step):
            own = slice(first, min(first + step, N))
            entries = slice(ends[first] - counts[first], ends[own.stop - 1])
            gain[own], at[own], below[own], varied[own] = _cuts(
                node[entries] - first, code[entries], slot[entries], value[entries], sums[own], counts[own], min_leaf
            )
        better = active & varied & (gain > best)
        best, cut, n_left = (np.where(better, *pair) for pair in ((gain, best), (at, cut), (below, n_left)))
        feature = np.where(better, order[:, t], feature)
        left = np.where(np.repeat(better, counts), code <= np.repeat(cut, counts), left)
        tried += active & varied
    split = np.repeat(feature >= 0, counts)
    side = 2 * node[split] + ~left[split]
    return feature, cut, n_left, sums, rows[split][np.argsort(side, kind="stable")]


def _cuts(
    node: Ints, code: Ints, slot: Ints, value: Ints, sums: Floats, counts: Ints, min_leaf: int
) -> tuple[Floats, Ints, Ints, NDArray[np.bool_]]:
    """Return each node's best cut of a feature: its gain, code and rows on the left; and whether there are codes."""
    N, width = sums.shape
    place = node * BINS + code
    table = np.bincount(place, minlength=N * BINS).reshape(N, BINS)
    left = np.bincount(place * width + slot, value, N * BINS * width).reshape(N, BINS, width).cumsum(axis=1)
    below = table.cumsum(axis=1)
    above = counts[:, None] - below
    share = inverse(int(counts.max()))
    gain = np.square(left).sum(axis=2) * share[below] + np.square(sums[:, None] - left).sum(axis=2) * share[above]
    gain = np.where((below >= min_leaf) & (above >= min_leaf), gain, -np.inf)
    at, every = gain.argmax(axis=1), np.arange(N)
    varied = np.asarray((table < counts[:, None]).all(axis=1))
    return gain[every, at], at, below[every, at], varied
