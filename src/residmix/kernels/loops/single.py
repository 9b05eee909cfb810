"""The loop over tiles of rows of float32: products in single precision, all else as in `residmix.kernels.loops.tiles`.

Rows are less a component's mean in double precision before they are rounded; exponentials, logarithms, and sums of more
than a tile's rows are in double precision.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import WIDTH, clear, compiled, part, part_places, piece
from residmix.kernels.loops.tiles import HALF, weigh
from residmix.kernels.plain import NOTHING
from residmix.kernels.writers.collect import column_pairs
from residmix.kernels.writers.distances import load_columns
from residmix.kernels.writers.prepare import add_prior, pack_factors
from residmix.kernels.writers.shares import sum_shares
from residmix.kernels.writers.single import (
    BROAD_CHUNK,
    centre_single,
    join_single,
    round_shares,
    scatter_single,
    sift_single,
)
from residmix.rows.scratch import scratch

__all__ = ["single_sums"]

Floats = NDArray[np.float64]

# Share of rows that belong to a component at all above which they aren't taken out of the others (measured).
DENSE = 0.75
# Floats of a component's deviations: what the second cache holds with ease.
DEVIATIONS = 65_536


@lru_cache(maxsize=64)
def _tile(n: int, d: int) -> int:
    """Return the rows of a tile: whole chunks, few of them beyond the last of a block's n rows."""
    most = max(1, min(DEVIATIONS // d, 60 * WIDTH) // BROAD_CHUNK)
    sizes = [BROAD_CHUNK * chunks for chunks in range(1, most + 1)]
    # to add a tile's sums to the others costs as much as some dozen rows
    return min(sizes, key=lambda size: (-(-n // size) * (size + 40), -size))


@lru_cache(maxsize=64)
def _plan(tile: int, d: int, K: int, moments: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where the buffers begin, of double precision and of single, and the order of the sums."""
    m = d if moments else 0
    # the first two begin as zeros
    places = part_places([K * m, K * (m * (m + 1) // 2), K * tile, tile, tile, tile, WIDTH, WIDTH, tile + 2 * WIDTH])
    narrow = part_places([d * tile, d * tile, K * d * d, K * d, K * d, 4 * tile, tile + 2 * WIDTH], item=4)
    return places, narrow, column_pairs(m)


@piece
def _add_tile(n, tile_rows, d, K, places, work, narrow_places, narrow, mass):
    """Add the weighted shares of a tile to `mass` (K,), and its moments to what `single_block` collects at the end."""
    x, deviation = part(narrow, narrow_places, 0), part(narrow, narrow_places, 1)
    high, low = part(narrow, narrow_places, 3), part(narrow, narrow_places, 4)
    weighted, share = part(narrow, narrow_places, 5), part(narrow, narrow_places, 6)
    shift, sums = part(work, places, 0), part(work, places, 1)
    joint, lanes, index = part(work, places, 2), part(work, places, 6), part(work, places, 8)
    for k in range(K):
        sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes)
        mass[k] += lanes[0]
        if lanes[0] <= NOTHING:
            continue
        if lanes[1] > DENSE * n:
            round_shares(joint, k * tile_rows, tile_rows, index, share)
            centre_single(x, d, tile_rows, high, low, k * d, deviation)
        else:
            sift_single(x, d, tile_rows, high, low, k * d, joint, k * tile_rows, n, index, share, deviation)
        scatter_single(deviation, d, tile_rows, k, index, share, weighted, sums, shift)


@piece
def _collect(shifts, sums, pairs, shift, scatter):
    """Put the sums of all tiles where they belong: shift (K, d) and scatter (K, d, d)."""
    K, d = shift.shape
    for k in range(K):
        for j in range(d):
            shift[k, j] = shifts[k * d + j]
        for i in range(len(pairs)):
            value = sums[k * len(pairs) + i]
            scatter[k, pairs[i, 0], pairs[i, 1]] = value
            scatter[k, pairs[i, 1], pairs[i, 0]] = value


@compiled
def single_block(
    rows,
    centres,
    factors,
    constant,
    prior,
    weight,
    tile_rows,
    places,
    pairs,
    work,
    narrow_places,
    narrow,
    mass,
    shift,
    scatter,
):
    """E-step and full scatter of one block of float32; return its log-likelihood. As `tiles.full_block`."""
    (b, d), K = rows.shape, constant.size
    x, deviation = part(narrow, narrow_places, 0), part(narrow, narrow_places, 1)
    packed, high, low = part(narrow, narrow_places, 2), part(narrow, narrow_places, 3), part(narrow, narrow_places, 4)
    joint, top, total, w = part(work, places, 2), part(work, places, 3), part(work, places, 4), part(work, places, 5)
    lanes, lanes_top = part(work, places, 6), part(work, places, 7)
    clear(part(work, places, 0), places[2])
    pack_factors(factors, K, d, HALF, packed)
    for k in range(K):
        for j in range(d):
            high[k * d + j] = centres[k, j]
            low[k * d + j] = centres[k, j] - high[k * d + j]
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, d, tile_rows, x)
        join_single(x, tile_rows, high, low, packed, d, constant, K, deviation, joint, rows, start + n)
        add_prior(prior, prior.shape[1], start, n, tile_rows, joint)
        weigh(joint, K, weight, start, n, tile_rows, w, w, top, total, lanes, lanes_top)
        log_likelihood += lanes[0]
        if places[2] > 0:
            _add_tile(n, tile_rows, d, K, places, work, narrow_places, narrow, mass)
    if places[2] > 0:
        _collect(part(work, places, 0), part(work, places, 1), pairs, shift, scatter)
    return log_likelihood


def single_sums(
    rows: NDArray[np.float32],
    centres: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
) -> tuple[Any, Floats, Floats, Floats]:
    K, d = centres.shape
    tile = _tile(len(rows), d)
    places, narrow_places, pairs = _plan(tile, d, K, moments)
    # the density of the factors as they are rounded, so that what rounding costs is of second order
    exact = HALF * np.diagonal(factors, axis1=1, axis2=2)
    constant = constant + np.log1p((exact.astype(np.float32) - exact) / exact).sum(axis=1)
    work, narrow = (scratch((int(p[-1]),), kind) for p, kind in ((places, np.float64), (narrow_places, np.float32)))
    sums = np.zeros(K), np.zeros((K, d)), np.zeros((K, d, d))
    given = (readable(rows), readable(centres), readable(factors), constant, readable(prior), weight)
    return single_block(*given, tile, places, pairs, work, narrow_places, narrow, *sums), *sums
