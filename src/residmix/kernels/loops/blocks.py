"""A block of rows through the loops of its family, as `residmix.kernels.plain` does it: the plans, the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import CHUNK, WIDTH, part_places
from residmix.kernels.loops.tiles import (
    ball_block,
    ball_sizes,
    distances_block,
    full_block,
    full_sizes,
    scaled_block,
    scaled_sizes,
    tied_block,
    tied_sizes,
)
from residmix.kernels.writers.collect import column_pairs
from residmix.rows.scratch import scratch

__all__ = ["DENSE", "full_joint", "full_sums", "scaled_joint", "scaled_sums", "squared_distances", "tied_gram"]

Floats = NDArray[np.float64]

# Columns take all rows of a tile, panels those that belong to a component at all: by the number of columns, the share
# of such rows above which columns are quicker (measured).
DENSE = ((12, -1.0), (24, 0.3), (64, 0.7), (math.inf, 1.0))

# Columns from which balls have loops of their own: with fewer these take no less time (measured).
BALLS_FROM = 8

_NONE = np.empty((0, 0))


def tile_rows(n_columns: int, n_components: int) -> int:
    """Return how many rows go through the cache at once: whole chunks, about 48 KB, at most 60 vectors."""
    rows = 6144 // (n_columns + n_components + 4)
    return CHUNK * min(max(rows // CHUNK, 1), 60 * WIDTH // CHUNK)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a loop over tiles does a problem of one size."""

    tile_rows: int
    places: NDArray[np.int64]
    pairs: NDArray[np.int64]
    panels: int = 0

    def work(self) -> Floats:
        return scratch((int(self.places[-1]),), np.float64)


@lru_cache(maxsize=32)
def _full_plan(m: int, d: int, K: int, dense: float, moments: bool) -> _Plan:
    tile = max(96 // CHUNK * CHUNK, CHUNK) if dense >= 1 else tile_rows(m, K)
    columns = m if moments and dense < 1 else 0
    panels = -(-m // WIDTH) if moments and dense >= 0 else 0
    places = part_places(full_sizes(m, d, K, tile, columns, panels))
    return _Plan(tile, places, column_pairs(columns), panels)


@lru_cache(maxsize=32)
def _scaled_plan(d: int, K: int, balls: bool, moments: bool) -> _Plan:
    tile = tile_rows(d, K)
    sizes = ball_sizes if balls else scaled_sizes
    return _Plan(tile, part_places(sizes(d, K, tile, moments)), column_pairs(0))


@lru_cache(maxsize=32)
def _tied_plan(d: int, K: int) -> _Plan:
    tile = tile_rows(2 * d, K)
    return _Plan(tile, part_places(tied_sizes(d, K, tile)), column_pairs(K + d))


def full_sums(
    rows: Floats,
    d: int,
    centres: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
    runs: int = 1,
    out: Floats = _NONE,
) -> tuple[Any, Floats, Floats, Floats]:
    if runs > 1:
        return _each(runs, (centres, factors, constant), lambda c, f, k: full_sums(rows, d, c, f, k, prior, weight))
    K, m = centres.shape
    dense = next(share for columns, share in DENSE if m < columns)
    plan = _full_plan(m, d, K, dense, moments)
    if plan.panels * WIDTH > m:
        centres = np.hstack([centres, np.zeros((K, plan.panels * WIDTH - m))])
    sums = np.zeros(K), np.zeros((K, m)), np.zeros((K, m, m))
    given = (rows, d, readable(centres), readable(factors), constant, readable(prior), weight)
    return full_block(*given, plan.tile_rows, dense, plan.places, plan.pairs, plan.work(), *sums, out), *sums


def _each(
    runs: int, of_components: tuple[Floats, ...], sums: Callable[..., tuple[float, Floats, Floats, Floats]]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the sums of each of several mixtures, one after the other, side by side."""
    parts = (array.reshape(runs, -1, *array.shape[1:]) for array in of_components)
    values, *moments = zip(*(sums(*part) for part in zip(*parts, strict=True)), strict=True)
    mass, shift, scatter = map(np.concatenate, moments)
    return np.array(values), mass, shift, scatter


def full_joint(rows: Floats, means: Floats, factors: Floats, constant: Floats, prior: Floats) -> Floats:
    out = np.empty((len(rows), len(means)))
    full_sums(rows, means.shape[1], means, factors, constant, prior, np.empty(0), False, out=out)
    return out


def scaled_sums(
    rows: Floats,
    means: Floats,
    factors: Floats,
    constant: Floats,
    prior: Floats,
    weight: Floats,
    moments: bool = True,
    runs: int = 1,
    out: Floats = _NONE,
) -> tuple[Any, Floats, Floats, Floats]:
    if runs > 1:
        return _each(runs, (means, factors, constant), lambda m, f, k: scaled_sums(rows, m, f, k, prior, weight))
    (K, d), alike = means.shape, factors.shape[1] == 1
    balls = alike and d >= BALLS_FROM
    plan = _scaled_plan(d, K, balls, moments)
    mass, shift, scatter = np.zeros(K), np.zeros((K, d)), np.zeros(K if balls else (K, d))
    of = factors[:, 0] if balls else np.broadcast_to(factors, (K, d))
    given = (rows, readable(means), readable(of), constant, readable(prior), weight)
    block = ball_block if balls else scaled_block
    log_likelihood = block(*given, plan.tile_rows, plan.places, plan.work(), mass, shift, scatter, out)
    if alike:
        each = scatter / d if balls else scatter.mean(axis=1)
        scatter = np.repeat(each[:, None], d, axis=1)
    return log_likelihood, mass, shift, scatter


def scaled_joint(rows: Floats, means: Floats, factors: Floats, constant: Floats, prior: Floats) -> Floats:
    out = np.empty((len(rows), len(means)))
    scaled_sums(rows, means, factors, constant, prior, np.empty(0), False, out=out)
    return out


def tied_gram(
    rows: Floats, origin: Floats, rotation: Floats, means: Floats, constant: Floats, prior: Floats, weight: Floats
) -> tuple[float, Floats]:
    K, d = means.shape
    plan = _tied_plan(d, K)
    gram = np.empty((1, K + d, K + d))
    given = (
        rows,
        origin,
        readable(rotation)[None],
        readable(means),
        np.ones(K),
        constant,
        readable(prior),
        weight,
    )
    return tied_block(*given, plan.tile_rows, plan.places, plan.pairs, plan.work(), gram), gram[0]


def squared_distances(columns: Floats, centres: Floats) -> Floats:
    (d, n), K = columns.shape, len(centres)
    padded = columns
    if n % CHUNK:
        padded = scratch((d, n + -n % CHUNK), np.float64)
        padded[:, :n], padded[:, n:] = columns, 0.0
    out = scratch((K, padded.shape[1]), np.float64)
    distances_block(readable(padded), readable(centres), out)
    return out[:, :n]
