"""A level of a forest as a compiled loop; see `residmix.kernels.trees`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.compiled import compiled
from residmix.kernels.trees import BINS, GAIN, inverse

__all__ = ["split_nodes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def split_nodes(
    codes: NDArray[np.uint8],
    rows: Ints,
    counts: Ints,
    order: Ints,
    target: tuple[Ints, Ints, int],
    tries: int,
    min_leaf: int,
) -> tuple[Ints, Ints, Ints, Floats, Ints]:
    slots, values, width = target
    N = len(counts)
    feature, cut, n_left = np.full(N, -1), *np.zeros((2, N), dtype=np.int64)
    sums, ordered = np.zeros((N, width)), np.empty_like(rows)
    table, within, left = np.zeros(BINS, np.int64), np.zeros(BINS * width), np.zeros(width)
    kept = _split(
        codes.ravel(), rows, counts, order, slots, values, tries, min_leaf, inverse(len(slots)), table, within, left,
        feature, cut, n_left, sums, ordered,
    )  # fmt: skip
    return feature, cut, n_left, sums, ordered[:kept]


@compiled
def _split(
    codes, rows, counts, order, slots, values, tries, min_leaf, inverse, table, within, left, feature, cut, n_left,
    sums, ordered,
):  # fmt: skip
    n, d, width = len(slots), order.shape[1], len(left)
    begin = kept = 0
    for node in range(len(counts)):
        m = counts[node]
        for i in range(begin, begin + m):
            sums[node, slots[rows[i]]] += values[rows[i]]
        best = 0.0
        for s in range(width):
            best += sums[node, s] * sums[node, s]
        best *= inverse[m] * GAIN
        tried = t = 0
        while m >= 2 * min_leaf and tried < tries and t < d:
            f = order[node, t]
            t += 1
            for i in range(begin, begin + m):
                r = rows[i]
                c = codes[f * n + r]
                table[c] += 1
                within[c * width + slots[r]] += values[r]
            if table[codes[f * n + rows[begin]]] < m:
                tried += 1
            below = 0
            for s in range(width):
                left[s] = 0.0
            for c in range(BINS):
                if table[c] == 0:
                    continue
                below += table[c]
                above = m - below
                table[c] = 0
                for s in range(width):
                    left[s] += within[c * width + s]
                    within[c * width + s] = 0.0
                if below >= min_leaf and above >= min_leaf:
                    one = two = 0.0
                    for s in range(width):
                        right = sums[node, s] - left[s]
                        one += left[s] * left[s]
                        two += right * right
                    gain = one * inverse[below] + two * inverse[above]
                    if gain > best:
                        best = gain
                        feature[node], cut[node], n_left[node] = f, c, below
        if feature[node] >= 0:
            f, c, one_side, other = feature[node], cut[node], kept, kept + n_left[node]
            for i in range(begin, begin + m):
                if codes[f * n + rows[i]] <= c:
                    ordered[one_side] = rows[i]
                    one_side += 1
                else:
                    ordered[other] = rows[i]
                    other += 1
            kept += m
        begin += m
    return kept
