"""Loops over the tiles of a block: E-step and moments in one pass, in the cache.

A tile's responsibilities live in a buffer of components x tile rows, and the tile is used up before the next one is
read. Sums run over the rows of the block in a fixed order, in vector lanes that are added at the end.

All buffers are parts of one array, `work`, see `part_places`; `residmix.kernels.plain` says what is computed.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from residmix.kernels.compiled import CHUNK, WIDTH, clear, compiled, part, piece
from residmix.kernels.plain import NOTHING
from residmix.kernels.writers.collect import add_lanes, collect_columns, collect_panels
from residmix.kernels.writers.diagonal import (
    join_balls,
    join_scaled,
    scatter_balls,
    scatter_squares,
    square_distances,
)
from residmix.kernels.writers.distances import join_full, load_columns, rotate, take_expected
from residmix.kernels.writers.prepare import add_prior, copy_joint, load_panels, load_weights, pack_factors, sum_logs
from residmix.kernels.writers.scatters import scatter_columns, scatter_panels, sift_panels
from residmix.kernels.writers.shares import share_rows, sum_shares

__all__ = [
    "ball_block",
    "ball_sizes",
    "distances_block",
    "full_block",
    "full_sizes",
    "scaled_block",
    "scaled_sizes",
    "tied_block",
    "tied_sizes",
]

# Half a squared distance is the square of a distance times this.
HALF = 0.5**0.5


@piece
def weigh(joint, K, weight, start, n, tile_rows, w, scale, top, total, lanes, lanes_top):
    """Turn log p(x, k) of a tile into weighted shares; lanes[0] is the weighted sum of log p(x)."""
    load_weights(weight, weight.size > 0, start, n, tile_rows, w)
    share_rows(joint, K, tile_rows, tile_rows // WIDTH, w, scale, top, total, lanes, lanes_top)
    if weight.size > 0:
        sum_logs(w, top, total, n, lanes)
    else:
        # each total is between 1 and K, so a lane's product can't overflow: one logarithm instead of up to 60
        sum_logs(w, lanes_top, lanes, WIDTH, lanes)


def full_sizes(m: int, d: int, K: int, tile_rows: int, columns: int, panels: int) -> list[int]:
    """Return the sizes of the buffers of `full_block`.

    Moments are taken of so many columns, 0 or m, and in so many panels: with neither, of the log-likelihood alone.
    """
    return [
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


@piece
def add_tile(rows, start, n, tile_rows, centres, K, dense, places, work, mass):
    """Add the weighted shares of a tile to `mass` (K,), and its moments to what `full_block` collects at the end.

    A component's moments are taken in columns, all rows of them, if more than the share `dense` of the rows belong to
    it at all; else in panels, of its rows alone.
    """
    m, between = rows.shape[1], centres.shape[1]
    panels = (m + WIDTH - 1) // WIDTH
    x, joint, panel_x = part(work, places, 5), part(work, places, 8), part(work, places, 4)
    lanes, times_share = part(work, places, 12), part(work, places, 15)
    deviation, index, share = part(work, places, 14), part(work, places, 16), part(work, places, 17)
    shift, sums, panel_shift, panel_sums = (
        part(work, places, 0),
        part(work, places, 1),
        part(work, places, 2),
        part(work, places, 3),
    )
    loaded = False
    for k in range(K):
        sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes)
        mass[k] += lanes[0]
        if lanes[0] <= NOTHING:
            continue
        if lanes[1] > dense * n:
            scatter_columns(x, m, tile_rows, centres, k, between, joint, times_share, sums, shift)
            continue
        if not loaded:
            load_panels(rows, start, n, m, tile_rows, panel_x)
            loaded = True
        sift_panels(panel_x, panels, centres, k, joint, n, tile_rows, index, share, deviation)
        scatter_panels(deviation, panels, k, tile_rows, index, share, times_share, panel_sums, panel_shift)


@compiled
def full_block(
    rows, d, centres, factors, constant, prior, weight, tile_rows, dense, places, pairs, work, mass, shift, scatter, out
):
    """E-step and full scatter of one block; return its log-likelihood.

    Parameters
    ----------
    rows : (b, m)
        Rows ``[extra, x]``; the last d columns have the density.
    centres : (K, m), or more columns to fill whole panels;  factors : (K, d, d), upper triangular
    constant : (K,);  prior : (b, K) or (0, 0);  weight : (b,) or (0,)
    dense : float
        Of `add_tile`. Below 0 moments are never taken in panels, from 1 on always.
    places, pairs : of `full_sizes`, and `column_pairs`
    work : (places[-1],)
        Of any content.
    mass, shift, scatter : (K,), (K, m), (K, m, m)
        Zeros, to be filled.
    out : (b, K) or (0, 0)
        Filled with log p(x, k), and nothing else then.
    """
    (b, m), K, between = rows.shape, constant.size, centres.shape[1]
    x, chunk, packed, joint = part(work, places, 5), part(work, places, 6), part(work, places, 7), part(work, places, 8)
    top, total, w = part(work, places, 9), part(work, places, 10), part(work, places, 11)
    lanes, lanes_top = part(work, places, 12), part(work, places, 13)
    clear(part(work, places, 0), places[5])
    pack_factors(factors, K, d, HALF, packed)
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, m, tile_rows, x)
        density = (m - d) * tile_rows, tile_rows, centres, m - d, between, packed, constant, K, d, chunk, joint
        join_full(x, *density, rows, start + n, m)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        if out.size > 0:
            copy_joint(joint, K, start, n, tile_rows, out)
            continue
        weigh(joint, K, weight, start, n, tile_rows, w, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        if places[5] > 0:
            add_tile(rows, start, n, tile_rows, centres, K, dense, places, work, mass)
    if places[1] > places[0]:
        add_lanes(part(work, places, 0), K * m, shift)
        collect_columns(part(work, places, 1), pairs, len(pairs), K, m, scatter)
    if places[3] > places[2]:
        panels = (m + WIDTH - 1) // WIDTH
        collect_panels(part(work, places, 3), part(work, places, 2), panels, K, m, shift, scatter)
    return log_likelihood


@piece
def add_masses(joint, K, tile_rows, lanes, masses, mass):
    """Keep the sums of a tile's weighted shares in `masses`, and add them to `mass` (K,)."""
    for k in range(K):
        sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes)
        masses[k] = lanes[0]
        mass[k] += lanes[0]


def scaled_sizes(d: int, K: int, tile_rows: int, moments: bool) -> list[int]:
    """Return the sizes of the buffers of `scaled_block`; without moments, of the log-likelihood alone."""
    sums = K * d * WIDTH if moments else 0
    return [sums, sums, d * tile_rows, K * tile_rows, tile_rows, tile_rows, tile_rows, WIDTH, WIDTH, K]


@compiled
def scaled_block(rows, means, factors, constant, prior, weight, tile_rows, places, work, mass, shift, scatter, out):
    """E-step and diagonal scatter of one block; `factors` (K, d) divided by sqrt(2), else as `full_block`."""
    (b, d), K = rows.shape, constant.size
    sums_shift, sums = part(work, places, 0), part(work, places, 1)
    x, joint = part(work, places, 2), part(work, places, 3)
    top, total, w = part(work, places, 4), part(work, places, 5), part(work, places, 6)
    lanes, lanes_top, masses = part(work, places, 7), part(work, places, 8), part(work, places, 9)
    clear(sums_shift, places[2])
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, d, tile_rows, x)
        join_scaled(x, tile_rows, means, factors, constant, K, d, joint, rows, start + n, d)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        if out.size > 0:
            copy_joint(joint, K, start, n, tile_rows, out)
            continue
        weigh(joint, K, weight, start, n, tile_rows, w, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        if places[2] > 0:
            add_masses(joint, K, tile_rows, lanes, masses, mass)
            scatter_squares(x, d, tile_rows, means, K, masses, joint, sums_shift, sums)
    if places[2] > 0:
        add_lanes(sums_shift, K * d, shift)
        add_lanes(sums, K * d, scatter)
    return log_likelihood


def ball_sizes(d: int, K: int, tile_rows: int, moments: bool) -> list[int]:
    """Return the sizes of the buffers of `ball_block`; without moments, of the log-likelihood alone."""
    sums = [K * d * WIDTH, K * WIDTH] if moments else [0, 0]
    return [*sums, d * tile_rows, K * tile_rows, K * tile_rows, tile_rows, tile_rows, tile_rows, WIDTH, WIDTH, K]


@compiled
def ball_block(rows, means, factors, constant, prior, weight, tile_rows, places, work, mass, shift, scatter, out):
    """E-step of one block, and scatter (K,) summed over features; `factors` (K,), else as `scaled_block`."""
    (b, d), K = rows.shape, constant.size
    sums_shift, sums = part(work, places, 0), part(work, places, 1)
    x, squares, joint = part(work, places, 2), part(work, places, 3), part(work, places, 4)
    top, total, w = part(work, places, 5), part(work, places, 6), part(work, places, 7)
    lanes, lanes_top, masses = part(work, places, 8), part(work, places, 9), part(work, places, 10)
    clear(sums_shift, places[2])
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, d, tile_rows, x)
        square_distances(x, tile_rows, means, K, d, squares, rows, start + n, d)
        join_balls(squares, tile_rows, factors, constant, K, joint)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        if out.size > 0:
            copy_joint(joint, K, start, n, tile_rows, out)
            continue
        weigh(joint, K, weight, start, n, tile_rows, w, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        if places[2] > 0:
            add_masses(joint, K, tile_rows, lanes, masses, mass)
            scatter_balls(x, d, tile_rows, means, K, masses, joint, squares, sums_shift, sums)
    if places[2] > 0:
        add_lanes(sums_shift, K * d, shift)
        add_lanes(sums, K, scatter)
    return log_likelihood


def tied_sizes(d: int, K: int, tile_rows: int) -> list[int]:
    """Return the sizes of the buffers of `tied_block`."""
    m = K + d
    sizes = [m * WIDTH, m * (m + 1) // 2 * WIDTH, m]
    # up to here they begin as zeros; the shares and what is left of a row lie side by side
    sizes += [d * tile_rows, d * d, K * tile_rows, d * tile_rows]
    return [*sizes, tile_rows, tile_rows, tile_rows, tile_rows, WIDTH, WIDTH, 4 * tile_rows]


@compiled
def tied_block(rows, origin, rotation, means, factors, constant, prior, weight, tile_rows, places, pairs, work, gram):
    """E-step of one block whose components are unit balls after `rotation`, and the sums of `plain.tied_gram`."""
    (b, d), K = rows.shape, constant.size
    sums_shift, sums, zeros = part(work, places, 0), part(work, places, 1), part(work, places, 2)
    x, packed, joint, y = part(work, places, 3), part(work, places, 4), part(work, places, 5), part(work, places, 6)
    top, total, w, ones = part(work, places, 7), part(work, places, 8), part(work, places, 9), part(work, places, 10)
    lanes, lanes_top, times_share = part(work, places, 11), part(work, places, 12), part(work, places, 13)
    clear(sums_shift, places[3])
    pack_factors(rotation, 1, d, 1.0, packed)
    ones[:] = 1.0
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, d, tile_rows, x)
        for j in range(d):
            for i in range(tile_rows):
                x[j * tile_rows + i] -= origin[j]
        rotate(x, tile_rows, packed, d, y)
        square_distances(y, tile_rows, means, K, d, joint, rows, start + n, d)
        join_balls(joint, tile_rows, factors, constant, K, joint)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        weigh(joint, K, weight, start, n, tile_rows, w, ones, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        take_expected(y, tile_rows, means, K, d, joint, total)
        scatter_columns(joint, K + d, tile_rows, zeros, 0, 0, w, times_share, sums, sums_shift)
    collect_columns(sums, pairs, len(pairs), 1, K + d, gram)
    return log_likelihood


@compiled
def distances_block(columns, centres, out):
    """Fill `out` (K, n) with the squared distances of columns (d, n) to centres, n being whole chunks of rows."""
    n = columns.shape[1]
    square_distances(columns, n, centres, len(centres), len(columns), out, columns, n, 0)
