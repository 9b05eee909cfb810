"""A tile of rows as columns, one feature's values side by side, and its moments by pairs of columns."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from numba import njit

from residmix.moments.distances import transpose
from residmix.moments.registers import WIDTH
from residmix.moments.scatters import last_scatter, pair_scatter, self_scatter

__all__ = ["collect_columns", "load_columns", "scatter_columns"]

last1, last2, last3, last4 = last_scatter
pair1, pair2, pair3, pair4 = pair_scatter


@njit(nogil=True)
def load_columns(rows, start, n, tile_rows, x):
    """Turn n rows of a block into columns; rows that aren't there are zeros."""
    m = rows.shape[1]
    whole = n // WIDTH * WIDTH
    fours = m // 4 * 4
    for i in range(0, whole, WIDTH):
        for j in range(0, fours, 4):
            transpose(rows, (start + i) * m + j, m, x, j * tile_rows + i, tile_rows)
    for j in range(m):
        column = j * tile_rows
        for i in range(whole if j < fours else 0, n):
            x[column + i] = rows[start + i, j]
        for i in range(n, tile_rows):
            x[column + i] = 0.0


@njit(nogil=True)
def scatter_columns(x, m, centres, k, joint, tile_rows, weighted, scatter, shift):
    """Add one component's moments of a tile in columns, by pairs of columns."""
    vectors, mean, share, lanes = tile_rows // WIDTH, k * m, k * tile_rows, k * m * WIDTH
    entry = k * (m * (m + 1) // 2) * WIDTH
    j = 0
    while j + 4 < m:
        first = j * tile_rows
        self_scatter(
            x,
            first,
            tile_rows,
            vectors,
            centres,
            mean + j,
            joint,
            share,
            weighted,
            scatter,
            entry,
            shift,
            lanes + j * WIDTH,
        )
        entry += 10 * WIDTH
        other = j + 4
        while other + 4 <= m:
            pair4(weighted, x, other * tile_rows, tile_rows, vectors, centres, mean + other, scatter, entry)
            entry += 16 * WIDTH
            other += 4
        if m - other == 3:
            pair3(weighted, x, other * tile_rows, tile_rows, vectors, centres, mean + other, scatter, entry)
        elif m - other == 2:
            pair2(weighted, x, other * tile_rows, tile_rows, vectors, centres, mean + other, scatter, entry)
        elif m - other == 1:
            pair1(weighted, x, other * tile_rows, tile_rows, vectors, centres, mean + other, scatter, entry)
        entry += 4 * (m - other) * WIDTH
        j += 4
    first, at, sums = j * tile_rows, mean + j, lanes + j * WIDTH
    if m - j == 4:
        last4(x, first, tile_rows, vectors, centres, at, joint, share, weighted, scatter, entry, shift, sums)
    elif m - j == 3:
        last3(x, first, tile_rows, vectors, centres, at, joint, share, weighted, scatter, entry, shift, sums)
    elif m - j == 2:
        last2(x, first, tile_rows, vectors, centres, at, joint, share, weighted, scatter, entry, shift, sums)
    else:
        last1(x, first, tile_rows, vectors, centres, at, joint, share, weighted, scatter, entry, shift, sums)


@njit(nogil=True)
def collect_columns(lanes, lane_shift, shift, scatter):
    """Add up the lanes of `scatter_columns` into shift (K, m) and scatter (K, m, m)."""
    K, m = shift.shape
    for k in range(K):
        for j in range(m):
            shift[k, j] = lane_shift[(k * m + j) * WIDTH : (k * m + j + 1) * WIDTH].sum()
        entry = k * (m * (m + 1) // 2) * WIDTH
        for j in range(0, m, 4):
            width = min(4, m - j)
            for a in range(j, j + width):
                for c in range(a, j + width):
                    scatter[k, a, c] = scatter[k, c, a] = lanes[entry : entry + WIDTH].sum()
                    entry += WIDTH
            for other in range(j + 4, m, 4):
                for a in range(j, j + 4):
                    for c in range(other, min(other + 4, m)):
                        scatter[k, a, c] = scatter[k, c, a] = lanes[entry : entry + WIDTH].sum()
                        entry += WIDTH
