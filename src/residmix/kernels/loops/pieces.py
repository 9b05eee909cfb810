"""What surrounds the micro-kernels of a tile: weights and priors in, sums out, in plain numba.

All arrays are flat where the micro-kernels' are: see `residmix.kernels.compiled` for how tiles lie in them.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.compiled import WIDTH, piece

__all__ = [
    "add_lanes",
    "add_prior",
    "collect_columns",
    "collect_panels",
    "column_pairs",
    "copy_joint",
    "load_panels",
    "load_weights",
    "pack_factors",
    "sum_logs",
]


@piece
def pack_factors(factors, K, d, scale, packed):
    """Lay upper triangular factors (K, d, d) out as `join_full` and `rotate` read them, times `scale`.

    Four columns at a time, row by row down to the diagonal. Component k's begin at k d d.
    """
    for k in range(K):
        entry = k * d * d
        for above in range(0, d, 4):
            width = min(4, d - above)
            for i in range(above + width):
                for j in range(width):
                    packed[entry] = scale * factors[k, i, above + j]
                    entry += 1


@piece
def load_weights(weight, start, n, stride, w):
    """w[i] = weight[start + i], 1 if none is given, for i < n; 0 for the other of `stride` rows."""
    weighted = weight.size > 0
    for i in range(n):
        w[i] = weight[start + i] if weighted else 1.0
    for i in range(n, stride):
        w[i] = 0.0


@piece
def add_prior(prior, start, n, stride, joint):
    """joint[k, i] += prior[start + i, k] for n rows, if there is any."""
    for k in range(prior.shape[1]):
        for i in range(n):
            joint[k * stride + i] += prior[start + i, k]


@piece
def copy_joint(joint, K, start, n, stride, out):
    """out[start + i, k] = joint[k, i] for n rows."""
    for i in range(n):
        for k in range(K):
            out[start + i, k] = joint[k * stride + i]


@piece
def sum_logs(weight, top, total, n):
    """Return sum_i weight[i] (top[i] + log(total[i])) over n rows; the logarithm of 0 counts as 0."""
    found = 0.0
    for i in range(n):
        found += weight[i] * (top[i] + np.log(total[i] if total[i] > 0.0 else 1.0))
    return found


@piece
def load_panels(rows, start, n, stride, x):
    """Turn n rows into panels of `stride` rows; columns that aren't there stay what they are."""
    for i in range(n):
        for j in range(rows.shape[1]):
            x[(j // WIDTH * stride + i) * WIDTH + j % WIDTH] = rows[start + i, j]


def column_pairs(m: int) -> NDArray[np.int64]:
    """Return the pairs of m columns (., 2) in the order in which `scatter_columns` keeps their sums."""
    pairs = []
    for j in range(0, m, 4):
        group = range(j, min(j + 4, m))
        pairs += [(a, c) for a in group for c in group if a <= c]
        for other in range(j + 4, m, 4):
            pairs += [(a, c) for a in group for c in range(other, min(other + 4, m))]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@piece
def add_lanes(lanes, K, d, out):
    """out[k, j] = sum(lanes[k, j, :WIDTH])."""
    for k in range(K):
        for j in range(d):
            found = 0.0
            for lane in range(WIDTH):
                found += lanes[(k * d + j) * WIDTH + lane]
            out[k, j] = found


@piece
def collect_columns(lanes, pairs, K, scatter):
    """Add up the lanes of `scatter_columns` into scatter (K, m, m)."""
    for k in range(K):
        for i in range(len(pairs)):
            found = 0.0
            for lane in range(WIDTH):
                found += lanes[(k * len(pairs) + i) * WIDTH + lane]
            scatter[k, pairs[i, 0], pairs[i, 1]] = scatter[k, pairs[i, 1], pairs[i, 0]] = found


@piece
def collect_panels(blocks, panel_shift, panels, shift, scatter):
    """Add the blocks of `scatter_panels` to shift (K, m) and scatter (K, m, m)."""
    (K, m), entry = shift.shape, 0
    for k in range(K):
        for j in range(m):
            shift[k, j] += panel_shift[k * panels * WIDTH + j]
        for p in range(panels):
            for other in range(p, panels):
                for a in range(p * WIDTH, p * WIDTH + WIDTH):
                    for c in range(other * WIDTH, other * WIDTH + WIDTH):
                        if a <= c < m:
                            scatter[k, a, c] += blocks[entry]
                            scatter[k, c, a] = scatter[k, a, c]
                        entry += 1
