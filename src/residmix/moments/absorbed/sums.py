"""Sums by level: the moments of a factor with too many levels for columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from residmix.kernels.arrays import readable, readable_weight
from residmix.kernels.pairs import locate_levels, sum_levels
from residmix.moments.linear import (
    LinearMoments,
    block_origins,
    linear_moments,
    made_of_numbers,
    merge_moments,
    moments_about,
)
from residmix.rows.block import Block

__all__ = ["Cells", "FactorMoments", "FactorStep", "LevelSums", "factor_block_rows", "merge_factor_moments"]

Array = NDArray[np.float64]

# Numbers in a tile of a block, which is visited several times: half a megabyte.
_TILE = 65536


@dataclass
class LevelSums:
    """Sums over the rows of each level, of values less their origin.

    Attributes
    ----------
    present : ndarray of int (u,) or None
        The levels that the rows below belong to; None: all of them, in order.
    weight : ndarray (u,)
    a, x : ndarray (u, q), (u, d)
    """

    present: NDArray[np.int64] | None
    weight: Array
    a: Array
    x: Array

    def spread(self, size: int) -> LevelSums:
        """Return the sums of all `size` levels."""
        if self.present is None:
            return self
        whole = LevelSums(None, np.zeros(size), np.zeros((size, self.a.shape[1])), np.zeros((size, self.x.shape[1])))
        whole.weight[self.present] = self.weight
        whole.a[self.present] = self.a
        whole.x[self.present] = self.x
        return whole

    def add(self, other: LevelSums, step_a: Array, step_x: Array) -> None:
        """Add sums about another origin, which lies `step` beyond ours."""
        at: Any = slice(None) if other.present is None else other.present
        self.weight[at] += other.weight
        self.a[at] += other.a + other.weight[:, None] * step_a
        self.x[at] += other.x + other.weight[:, None] * step_x


@dataclass
class Cells:
    """Weights of the pairs of levels of two factors that occur together; a few unsorted runs, merged now and then."""

    shape: tuple[int, int]
    keys: list[NDArray[np.int64]]
    weights: list[Array]

    def add(self, other: Cells) -> None:
        self.keys += other.keys
        self.weights += other.weights
        if sum(map(len, self.keys[1:])) > max(len(self.keys[0]), 1 << 16):
            self.compact()

    def compact(self) -> None:
        keys, where = np.unique(np.concatenate(self.keys), return_inverse=True)
        self.keys, self.weights = [keys], [_total(where, np.concatenate(self.weights), len(keys))]

    def matrix(self) -> sparse.csr_array:
        """Return the table (L1, L2)."""
        self.compact()
        rows, columns = np.divmod(self.keys[0], self.shape[1])
        return sparse.csr_array((self.weights[0], (rows, columns)), shape=self.shape)


@dataclass
class FactorMoments:
    """Moments of [a; x], sums by level of each factor, and which levels of two factors occur together.

    Attributes
    ----------
    linear : LinearMoments
        The sums below are about its origins.
    sizes : tuple of int
        Numbers of levels.
    sums : list of LevelSums
    cells : dict of str to Cells
        For pairs of factors f < g, under ``"f:g"``.
    """

    linear: LinearMoments
    sizes: tuple[int, ...]
    sums: list[LevelSums]
    cells: dict[str, Cells]


def factor_block_rows(sizes: tuple[int, ...], d: int) -> int:
    """Return the rows in a block: many a level, so that adding up the sums of blocks costs less than making them."""
    wanted = 1 << int(np.ceil(np.log2(max(8 * max(sizes), 8192))))
    return int(min(wanted, 131072, max(4096, (1 << 23) // max(d, 1))))


@dataclass(frozen=True)
class FactorStep:
    """``block -> FactorMoments``."""

    sizes: tuple[int, ...]

    def __call__(self, block: Block) -> FactorMoments:
        for codes, size in zip(block.codes, self.sizes, strict=True):
            if codes.min(initial=0) < 0:
                row = block.start + int(np.argmax(codes < 0))
                raise ValueError(
                    f"a factor of {size} levels has a missing value in row {row}, and too many levels for "
                    "missing='mean' in fit; use missing='indicator'"
                )
        with np.errstate(invalid="ignore", over="ignore"):
            linear, sums = self._summed(block)
        cells = {}
        for g in range(len(self.sizes)):
            for f in range(g):
                keys = block.codes[f].astype(np.int64) * self.sizes[g] + block.codes[g]
                found, where = np.unique(keys, return_inverse=True)
                total = _total(where, block.weight, len(found))
                cells[f"{f}:{g}"] = Cells((self.sizes[f], self.sizes[g]), [found], [total])
        return FactorMoments(linear, self.sizes, sums, cells)

    def _summed(self, block: Block) -> tuple[LinearMoments, list[LevelSums]]:
        """Return the block's moments and its sums by level, about the same origins, by tiles that stay in cache."""
        A = block.design
        n, d, q = block.n_rows, block.X.shape[1], A.shape[1]
        origin_x, origin_a = block_origins(block.X, A, block.weight)
        weight = readable_weight(block.weight)
        sums, places = [], []
        for codes, size in zip(block.codes, self.sizes, strict=True):
            # few levels among many: only those that occur
            present, local = (None, codes) if size <= n // 2 else locate_levels(codes, size)
            total = _total(local, block.weight, size if present is None else len(present))
            sums.append(LevelSums(present, total, np.zeros((len(total), q)), np.zeros((len(total), d))))
            places.append(readable(local))
        squares, unused = np.zeros(d), np.zeros(max(d, q))
        parts = []
        rows = max(256, _TILE // max(d + q, 1))
        for start in range(0, n, rows):
            tile = slice(start, start + rows)
            X, own = readable(block.X[tile]), weight[tile]
            for f, (by_level, codes) in enumerate(zip(sums, places, strict=True)):
                sum_levels(X, origin_x, codes[tile], own, by_level.x, unused if f or q else squares)
                if q:
                    sum_levels(readable(A[tile]), origin_a, codes[tile], own, by_level.a, unused)
            if q:
                parts.append(linear_moments(replace(block.select(tile), codes=()), (origin_x, origin_a)))
        if parts:
            return reduce(merge_moments, parts), sums
        whole = sums[0].x.sum(axis=0), np.zeros(0), np.zeros((0, 0)), np.zeros((0, d)), squares
        linear = moments_about(origin_x, origin_a, *whole, n, block.weight)
        if not made_of_numbers(linear) and np.isnan(block.X).any():
            linear = linear_moments(block)
        return linear, sums


def _total(where: NDArray[np.integer[Any]], weight: Array | None, size: int) -> Array:
    return np.bincount(where, weight, size).astype(np.float64)


def merge_factor_moments(one: FactorMoments, two: FactorMoments) -> FactorMoments:
    """Return the moments of the rows of both; changes the first."""
    step_a = two.linear.origin_a - one.linear.origin_a
    step_x = two.linear.origin_x - one.linear.origin_x
    for f, size in enumerate(one.sizes):
        one.sums[f] = one.sums[f].spread(size)
        one.sums[f].add(two.sums[f], step_a, step_x)
    for pair, cells in one.cells.items():
        cells.add(two.cells[pair])
    one.linear = merge_moments(one.linear, two.linear)
    return one
