"""Loops over the tiles of a block: E-step and moments in one pass, in the cache.

A tile's responsibilities live in a buffer of components x tile rows, and the tile is used up before the next one is
read. Sums run over the rows of the block in a fixed order, in vector lanes that are added at the end.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from math import log

import numpy as np
from numba import njit

from residmix.moments.columns import collect_columns, load_columns, scatter_columns
from residmix.moments.distances import (
    begin_direct,
    begin_whitened,
    centre_chunk,
    scaled_distance,
    whiten,
    whiten_direct,
)
from residmix.moments.panels import collect_panels, load_panels, pad_centres, scatter_panels
from residmix.moments.registers import CHUNK, WIDTH
from residmix.moments.scatters import add_squares
from residmix.moments.shares import NOTHING, share_rows, sum_shares

__all__ = ["full_block", "full_joint", "pack_factors", "scaled_block", "scaled_joint"]

whiten1, whiten2, whiten3, whiten4 = whiten
begin1, begin2, begin3, begin4 = begin_direct
direct1, direct2, direct3, direct4 = whiten_direct


@njit(nogil=True, cache=True)
def pack_factors(factors, packed):
    """Lay upper triangular factors (K, d, d) out as `whiten` reads them, divided by sqrt(2).

    Four columns at a time, row by row down to the diagonal; so the sum of squares is half the squared distance.
    """
    root = np.sqrt(0.5)
    d = factors.shape[1]
    for k in range(factors.shape[0]):
        entry = 0
        for j in range(0, d, 4):
            width = min(4, d - j)
            for row in range(j + width):
                for column in range(j, j + width):
                    packed[k, entry] = root * factors[k, row, column]
                    entry += 1


@njit(nogil=True)
def load_weights(weight, start, n, tile_rows, w):
    """Copy the weights of a tile; rows that aren't there have none."""
    for i in range(n):
        w[i] = weight[start + i] if weight.size > 0 else 1.0
    for i in range(n, tile_rows):
        w[i] = 0.0


@njit(nogil=True)
def join_full(x, x0, d, means, packed, constant, tile_rows, chunk, joint):
    """Fill `joint` with the constants less half the squared Mahalanobis distances of a tile's columns."""
    K = means.shape[0]
    flat_means, flat_factors = means.ravel(), packed.ravel()
    for k in range(K):
        mean, entry = k * d, k * packed.shape[1]
        for i in range(0, tile_rows, CHUNK):
            out = k * tile_rows + i
            if d <= 8:
                column = x0 + i
                if d >= 4:
                    begin4(x, column, tile_rows, flat_means, mean, flat_factors, entry, constant[k], joint, out)
                elif d == 3:
                    begin3(x, column, tile_rows, flat_means, mean, flat_factors, entry, constant[k], joint, out)
                elif d == 2:
                    begin2(x, column, tile_rows, flat_means, mean, flat_factors, entry, constant[k], joint, out)
                else:
                    begin1(x, column, tile_rows, flat_means, mean, flat_factors, entry, constant[k], joint, out)
                if d == 8:
                    direct4(x, column, tile_rows, flat_means, mean, flat_factors, entry + 16, joint, out)
                elif d == 7:
                    direct3(x, column, tile_rows, flat_means, mean, flat_factors, entry + 16, joint, out)
                elif d == 6:
                    direct2(x, column, tile_rows, flat_means, mean, flat_factors, entry + 16, joint, out)
                elif d == 5:
                    direct1(x, column, tile_rows, flat_means, mean, flat_factors, entry + 16, joint, out)
                continue
            centre_chunk(x, x0 + i, tile_rows, flat_means, mean, d, chunk)
            begin_whitened(chunk, flat_factors, entry, constant[k], joint, out)
            below, j = entry + 16, 4
            while j + 4 <= d:
                whiten4(chunk, flat_factors, below, j, joint, out)
                below += 4 * (j + 4)
                j += 4
            if d - j == 3:
                whiten3(chunk, flat_factors, below, j, joint, out)
            elif d - j == 2:
                whiten2(chunk, flat_factors, below, j, joint, out)
            elif d - j == 1:
                whiten1(chunk, flat_factors, below, j, joint, out)


@njit(nogil=True)
def join_scaled(x, d, means, factors, constant, tile_rows, joint):
    """Fill `joint` with the constants less half the squared distances, in units of each column's spread."""
    flat_means, flat_factors = means.ravel(), factors.ravel()
    for k in range(means.shape[0]):
        for i in range(0, tile_rows, CHUNK):
            out = k * tile_rows + i
            scaled_distance(x, i, tile_rows, flat_means, flat_factors, k * d, d, constant[k], joint, out)


@njit(nogil=True)
def add_prior(prior, start, n, tile_rows, joint):
    """Add the rows' own log-probabilities of components, (b, K) or (0, 0)."""
    for k in range(prior.shape[1]):
        for i in range(n):
            joint[k * tile_rows + i] += prior[start + i, k]


@njit(nogil=True)
def normalise(joint, K, n, tile_rows, weight, weighted, top, total, lanes, lanes_top):
    """Turn log p(x, k) into weighted responsibilities; return the weighted sum of log p(x)."""
    share_rows(joint, K, tile_rows, tile_rows // WIDTH, weight, top, total, lanes, lanes_top)
    log_likelihood = 0.0
    if weighted:
        for i in range(n):
            log_total = log(total[i]) if total[i] > 0.0 else 0.0
            log_likelihood += weight[i] * (top[i] + log_total)
    else:
        # each total is between 1 and K, so a lane's product can't overflow: one logarithm instead of up to 60
        for lane in range(WIDTH):
            log_likelihood += lanes_top[lane] + log(lanes[lane])
    return log_likelihood


@njit(nogil=True, cache=True)
def full_block(rows, d, centres, packed, constant, prior, weight, tile_rows, dense, with_moments, mass, shift, scatter):
    """E-step and full scatter of one block.

    Parameters
    ----------
    rows : (b, m)
        Rows ``[extra, x]``; the last d columns have the density.
    centres : (K, m);  packed : (K, .), see `pack_factors`;  constant : (K,);  prior : (b, K) or (0, 0)
    weight : (b,) or (0,)
    dense : float
        A component's moments of a tile are taken in columns, all rows of them, if more than this share of the rows
        belong to it at all; else in panels, of its rows alone. Below 0 never in panels, from 1 on always.
    with_moments : bool
        False leaves the moments at 0: the log-likelihood alone, to the same bits.
    mass, shift, scatter : (K,), (K, m), (K, m, m)
        Filled.

    Returns
    -------
    float
        Weighted sum of log p(x).
    """
    b, m = rows.shape
    K = constant.size
    x, chunk = np.zeros(m * tile_rows), np.empty(d * CHUNK)
    means = np.ascontiguousarray(centres[:, m - d :])
    joint = np.empty(K * tile_rows)
    top, total, w = np.empty(tile_rows), np.empty(tile_rows), np.empty(tile_rows)
    lanes, more_lanes = np.empty(WIDTH), np.empty(WIDTH)
    in_columns, in_panels = dense < 1.0, dense >= 0.0
    flat = centres.ravel()
    column_shift = np.zeros(K * m * WIDTH if in_columns else 0)
    column_sums = np.zeros(K * (m * (m + 1) // 2) * WIDTH if in_columns else 0)
    panels = (m + WIDTH - 1) // WIDTH if in_panels else 0
    width = panels * WIDTH
    padded = np.zeros(K * width)
    panel_x, deviation = np.zeros(width * tile_rows), np.empty(width * tile_rows)
    panel_shift, panel_sums = np.zeros(K * width), np.zeros(K * (panels * (panels + 1) // 2) * WIDTH * WIDTH)
    index, share = np.empty(tile_rows, np.int64), np.empty(tile_rows)
    weighted = np.empty(max(4, WIDTH) * tile_rows)
    if in_panels:
        pad_centres(centres, panels, padded)
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, tile_rows, x)
        load_weights(weight, start, n, tile_rows, w)
        join_full(x, (m - d) * tile_rows, d, means, packed, constant, tile_rows, chunk, joint)
        add_prior(prior, start, n, tile_rows, joint)
        log_likelihood += normalise(joint, K, n, tile_rows, w, weight.size > 0, top, total, lanes, more_lanes)
        if not with_moments:
            continue
        loaded = False
        for k in range(K):
            sum_shares(joint, k * tile_rows, tile_rows // WIDTH, lanes, more_lanes)
            tile_mass, used = lanes.sum(), more_lanes.sum()
            mass[k] += tile_mass
            if tile_mass <= NOTHING:
                continue
            if used > dense * n:
                scatter_columns(x, m, flat, k, joint, tile_rows, weighted, column_sums, column_shift)
                continue
            if not loaded:
                load_panels(rows, start, n, tile_rows, panel_x)
                loaded = True
            scatter_panels(
                panel_x,
                panels,
                padded,
                k,
                joint,
                n,
                tile_rows,
                index,
                share,
                deviation,
                weighted,
                panel_sums,
                panel_shift,
            )
    if in_columns:
        collect_columns(column_sums, column_shift, shift, scatter)
    if in_panels:
        collect_panels(panel_sums, panel_shift, shift, scatter)
    return log_likelihood


@njit(nogil=True, cache=True)
def scaled_block(rows, means, factors, constant, prior, weight, tile_rows, mass, shift, scatter):
    """E-step and diagonal scatter of one block; `factors` (K, d) divided by sqrt(2), else as `full_block`."""
    b, d = rows.shape
    K = constant.size
    x, joint = np.zeros(d * tile_rows), np.empty(K * tile_rows)
    top, total, w = np.empty(tile_rows), np.empty(tile_rows), np.empty(tile_rows)
    lanes, lanes_top = np.empty(WIDTH), np.empty(WIDTH)
    sums_shift, sums = np.zeros(K * d * WIDTH), np.zeros(K * d * WIDTH)
    flat, vectors = means.ravel(), tile_rows // WIDTH
    log_likelihood = 0.0
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, tile_rows, x)
        load_weights(weight, start, n, tile_rows, w)
        join_scaled(x, d, means, factors, constant, tile_rows, joint)
        add_prior(prior, start, n, tile_rows, joint)
        log_likelihood += normalise(joint, K, n, tile_rows, w, weight.size > 0, top, total, lanes, lanes_top)
        for k in range(K):
            sum_shares(joint, k * tile_rows, vectors, lanes, lanes_top)
            tile_mass = lanes.sum()
            mass[k] += tile_mass
            if tile_mass <= NOTHING:
                continue
            for j in range(d):
                entry = k * d + j
                add_squares(
                    x,
                    j * tile_rows,
                    vectors,
                    flat,
                    entry,
                    joint,
                    k * tile_rows,
                    sums_shift,
                    sums,
                    entry * WIDTH,
                )
    for k in range(K):
        for j in range(d):
            entry = (k * d + j) * WIDTH
            shift[k, j] = sums_shift[entry : entry + WIDTH].sum()
            scatter[k, j] = sums[entry : entry + WIDTH].sum()
    return log_likelihood


@njit(nogil=True, cache=True)
def full_joint(rows, means, packed, constant, prior, tile_rows, out):
    """Fill out (b, K) with log p(x, k), full covariances."""
    b, d = rows.shape
    K = constant.size
    x, chunk, joint = np.zeros(d * tile_rows), np.empty(d * CHUNK), np.empty(K * tile_rows)
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, tile_rows, x)
        join_full(x, 0, d, means, packed, constant, tile_rows, chunk, joint)
        add_prior(prior, start, n, tile_rows, joint)
        for i in range(n):
            for k in range(K):
                out[start + i, k] = joint[k * tile_rows + i]


@njit(nogil=True, cache=True)
def scaled_joint(rows, means, factors, constant, prior, tile_rows, out):
    """Fill out (b, K) with log p(x, k), diagonal covariances."""
    b, d = rows.shape
    K = constant.size
    x, joint = np.zeros(d * tile_rows), np.empty(K * tile_rows)
    for start in range(0, b, tile_rows):
        n = min(tile_rows, b - start)
        load_columns(rows, start, n, tile_rows, x)
        join_scaled(x, d, means, factors, constant, tile_rows, joint)
        add_prior(prior, start, n, tile_rows, joint)
        for i in range(n):
            for k in range(K):
                out[start + i, k] = joint[k * tile_rows + i]
