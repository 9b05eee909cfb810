"""Loops over the tiles of a block: E-step and moments in one pass, in the cache.

A tile's responsibilities live in a buffer of components x tile rows, and the tile is used up before the next one is
read. Sums run over the rows of the block in a fixed order, in vector lanes that are added at the end.

All buffers are parts of one array, `work`, see `part_places`.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.collect import add_lanes, collect_columns, collect_panels
from residmix.kernels.compiled import compiled, piece
from residmix.kernels.distances import join_full, join_scaled, load_columns, pack_factors
from residmix.kernels.registers import CHUNK, WIDTH, clear, part, part_places
from residmix.kernels.scatters import load_panels, scatter_columns, scatter_panels, scatter_squares
from residmix.kernels.shares import NOTHING, add_prior, copy_joint, load_weights, share_rows, sum_logs, sum_shares

__all__ = ["full_block", "full_places", "scaled_block", "scaled_places"]


def full_places(m: int, d: int, K: int, tile_rows: int, columns: int, panels: int) -> NDArray[np.int64]:
    """Return where the buffers of `full_block` begin, and where the last one ends.

    Moments are taken of so many columns, 0 or m, and in so many panels: with neither, of the log-likelihood alone.
    """
    sizes = [
        K * columns * WIDTH,
        K * (columns * (columns + 1) // 2) * WIDTH,
        K * panels * WIDTH,
        K * (panels * (panels + 1) // 2) * WIDTH * WIDTH,
        panels * WIDTH * tile_rows,
        # up to here they begin as zeros
        *(m * tile_rows, d * CHUNK, K * d * d, K * tile_rows),
        *(tile_rows, tile_rows, tile_rows, WIDTH, WIDTH),
        *(panels * WIDTH * tile_rows, max(4, WIDTH) * tile_rows, tile_rows, tile_rows),
    ]
    return part_places(sizes)


@piece
def weigh(joint, K, weight, start, n, tile_rows, w, top, total, lanes, lanes_top):
    """Turn log p(x, k) of a tile into weighted shares; lanes[0] is the weighted sum of log p(x)."""
    weighted = weight.size > 0
    load_weights(weight, weighted, start, n, tile_rows, w)
    share_rows(joint, K, tile_rows, tile_rows // WIDTH, w, top, total, lanes, lanes_top)
    if weighted:
        sum_logs(w, top, total, n, lanes)
    else:
        # each total is between 1 and K, so a lane's product can't overflow: one logarithm instead of up to 60
        sum_logs(w, lanes_top, lanes, WIDTH, lanes)


@compiled
def full_block(
    rows,
    d,
    centres,
    factors,
    constant,
    prior,
    weight,
    tile_rows,
    dense,
    places,
    pairs,
    work,
    mass,
    shift,
    scatter,
    joints,
):
    """E-step and full scatter of one block.

    Parameters
    ----------
    rows : (b, m)
        Rows ``[extra, x]``; the last d columns have the density.
    centres : (K, m), or more columns to fill whole panels;  factors : (K, d, d), upper triangular
    constant : (K,);  prior : (b, K) or (0, 0);  weight : (b,) or (0,)
    dense : float
        A component's moments of a tile are taken in columns, all rows of them, if more than this share of the rows
        belong to it at all; else in panels, of its rows alone. Below 0 never in panels, from 1 on always.
    places, pairs : see `full_places` and `column_pairs`
    work : (places[-1],)
        Of any content.
    mass, shift, scatter : (K,), (K, m), (K, m, m)
        Zeros, to be filled.
    joints : (b, K) or (0, 0)
        Filled with log p(x, k), and nothing else then.

    Returns
    -------
    float
        Weighted sum of log p(x).
    """
    b, m = rows.shape
    K, between = centres.shape
    column_shift, column_sums = part(work, places, 0), part(work, places, 1)
    panel_shift, panel_sums, panel_x = part(work, places, 2), part(work, places, 3), part(work, places, 4)
    x, chunk, packed, joint = part(work, places, 5), part(work, places, 6), part(work, places, 7), part(work, places, 8)
    top, total, w = part(work, places, 9), part(work, places, 10), part(work, places, 11)
    lanes, lanes_top = part(work, places, 12), part(work, places, 13)
    deviation, times_share = part(work, places, 14), part(work, places, 15)
    index, share = part(work, places, 16), part(work, places, 17)
    clear(column_shift, places[5])
    pack_factors(factors, K, d, packed)
    panels = (m + WIDTH - 1) // WIDTH
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, m, tile_rows, x)
        join_full(x, (m - d) * tile_rows, tile_rows, centres, m - d, between, packed, constant, K, d, chunk, joint)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        if joints.size > 0:
            copy_joint(joint, K, start, n, tile_rows, joints)
            continue
        weigh(joint, K, weight, start, n, tile_rows, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        if places[5] == 0:
            continue
        loaded = False
        for k in range(K):
            sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes)
            mass[k] += lanes[0]
            if lanes[0] <= NOTHING:
                continue
            if lanes[1] > dense * n:
                scatter_columns(x, m, tile_rows, centres, k, between, joint, times_share, column_sums, column_shift)
                continue
            if not loaded:
                load_panels(rows, start, n, m, tile_rows, panel_x)
                loaded = True
            scatter_panels(
                panel_x,
                panels,
                centres,
                k,
                joint,
                n,
                tile_rows,
                index,
                share,
                deviation,
                times_share,
                panel_sums,
                panel_shift,
            )
    if column_shift.size > 0:
        add_lanes(column_shift, K * m, shift)
        collect_columns(column_sums, pairs, len(pairs), K, m, scatter)
    if panel_shift.size > 0:
        collect_panels(panel_sums, panel_shift, panels, K, m, shift, scatter)
    return log_likelihood


def scaled_places(d: int, K: int, tile_rows: int) -> NDArray[np.int64]:
    """Return where the buffers of `scaled_block` begin, and where the last one ends."""
    sizes = [K * d * WIDTH, K * d * WIDTH]
    sizes += [d * tile_rows, K * tile_rows, tile_rows, tile_rows, tile_rows, WIDTH, WIDTH]
    return part_places(sizes)


@compiled
def scaled_block(rows, means, factors, constant, prior, weight, tile_rows, places, work, mass, shift, scatter, joints):
    """E-step and diagonal scatter of one block; `factors` (K, d) divided by sqrt(2), else as `full_block`."""
    b, d = rows.shape
    K = constant.size
    sums_shift, sums = part(work, places, 0), part(work, places, 1)
    x, joint = part(work, places, 2), part(work, places, 3)
    top, total, w = part(work, places, 4), part(work, places, 5), part(work, places, 6)
    lanes, lanes_top = part(work, places, 7), part(work, places, 8)
    clear(sums_shift, places[2])
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, d, tile_rows, x)
        join_scaled(x, tile_rows, means, factors, constant, K, d, joint)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        if joints.size > 0:
            copy_joint(joint, K, start, n, tile_rows, joints)
            continue
        weigh(joint, K, weight, start, n, tile_rows, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        for k in range(K):
            sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes)
            mass[k] += lanes[0]
            if lanes[0] > NOTHING:
                scatter_squares(x, d, tile_rows, means, k, joint, sums_shift, sums)
    if joints.size == 0:
        add_lanes(sums_shift, K * d, shift)
        add_lanes(sums, K * d, scatter)
    return log_likelihood
