"""Sums of a block's tiles, which lie as micro-kernels add them up, into moments by columns."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.moments.compiled import piece
from residmix.moments.registers import WIDTH

__all__ = ["collect_columns", "collect_panels", "collect_squares", "column_pairs"]


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
def collect_columns(lanes, lane_shift, pairs, shift, scatter):
    """Add up the lanes of `scatter_columns` into shift (K, m) and scatter (K, m, m)."""
    K, m = shift.shape
    for k in range(K):
        for j in range(m):
            shift[k, j] = 0.0
            for lane in range(WIDTH):
                shift[k, j] += lane_shift[(k * m + j) * WIDTH + lane]
        for pair in range(len(pairs)):
            total = 0.0
            for lane in range(WIDTH):
                total += lanes[(k * len(pairs) + pair) * WIDTH + lane]
            scatter[k, pairs[pair, 0], pairs[pair, 1]] = total
            scatter[k, pairs[pair, 1], pairs[pair, 0]] = total


@piece
def collect_panels(blocks, panel_shift, shift, scatter):
    """Add the blocks of `scatter_panels` to shift (K, m) and scatter (K, m, m)."""
    K, m = shift.shape
    panels = (m + WIDTH - 1) // WIDTH
    entry = 0
    for k in range(K):
        for j in range(m):
            shift[k, j] += panel_shift[k * panels * WIDTH + j]
        for p in range(panels):
            for other in range(p, panels):
                for row in range(p * WIDTH, (p + 1) * WIDTH):
                    for column in range(other * WIDTH, (other + 1) * WIDTH):
                        if row <= column < m:
                            scatter[k, row, column] += blocks[entry]
                            scatter[k, column, row] = scatter[k, row, column]
                        entry += 1


@piece
def collect_squares(lanes, lane_shift, shift, scatter):
    """Add up the lanes of `scatter_squares` into shift and scatter, both (K, d)."""
    K, d = shift.shape
    for k in range(K):
        for j in range(d):
            shift[k, j] = scatter[k, j] = 0.0
            for lane in range(WIDTH):
                shift[k, j] += lane_shift[(k * d + j) * WIDTH + lane]
                scatter[k, j] += lanes[(k * d + j) * WIDTH + lane]
