"""A tile of rows as panels of `WIDTH` features, and its moments by blocks of two panels."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from numba import njit

from residmix.moments.registers import WIDTH
from residmix.moments.scatters import add_outer, centre_panel, weigh_panel
from residmix.moments.shares import NOTHING

__all__ = ["collect_panels", "load_panels", "pad_centres", "scatter_panels"]

outer1, outer2, outer3 = add_outer


@njit(nogil=True)
def load_panels(rows, start, n, tile_rows, x):
    """Turn n rows of a block into panels; features that aren't there stay zeros."""
    m = rows.shape[1]
    for i in range(n):
        for j in range(m):
            x[(j // WIDTH) * tile_rows * WIDTH + i * WIDTH + j % WIDTH] = rows[start + i, j]


@njit(nogil=True)
def scatter_panels(x, panels, centres, k, joint, n, tile_rows, rows, share, deviation, weighted, scatter, shift):
    """Add one component's moments of a tile in panels, by blocks of panels; rows without a share are passed over."""
    used = 0
    for i in range(n):
        value = joint[k * tile_rows + i]
        if value > NOTHING:
            rows[used] = i
            share[used] = value
            used += 1
    size, block = tile_rows * WIDTH, WIDTH * WIDTH
    for p in range(panels):
        centre_panel(x, p * size, rows, used, centres, (k * panels + p) * WIDTH, deviation, p * size)
    entry = k * (panels * (panels + 1) // 2) * block
    for p in range(panels):
        weigh_panel(deviation, p * size, share, used, weighted, shift, (k * panels + p) * WIDTH)
        other = p
        while other + 3 <= panels:
            outer3(weighted, deviation, other * size, size, used, scatter, entry)
            entry += 3 * block
            other += 3
        if panels - other == 2:
            outer2(weighted, deviation, other * size, size, used, scatter, entry)
            entry += 2 * block
        elif panels - other == 1:
            outer1(weighted, deviation, other * size, size, used, scatter, entry)
            entry += block


@njit(nogil=True)
def collect_panels(blocks, panel_shift, shift, scatter):
    """Add the blocks of `scatter_panels` to shift (K, m) and scatter (K, m, m)."""
    K, m = shift.shape
    panels = (m + WIDTH - 1) // WIDTH
    for k in range(K):
        for j in range(m):
            shift[k, j] += panel_shift[k * panels * WIDTH + j]
        entry = k * (panels * (panels + 1) // 2) * WIDTH * WIDTH
        for p in range(panels):
            for other in range(p, panels):
                for a in range(WIDTH):
                    for c in range(WIDTH):
                        row, column = p * WIDTH + a, other * WIDTH + c
                        if row <= column < m:
                            scatter[k, row, column] += blocks[entry]
                            scatter[k, column, row] = scatter[k, row, column]
                        entry += 1


@njit(nogil=True)
def pad_centres(centres, panels, padded):
    """Copy centres (K, m) to whole panels."""
    K, m = centres.shape
    for k in range(K):
        for j in range(m):
            padded[k * panels * WIDTH + j] = centres[k, j]
