"""Block: consecutive rows that are worked on together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_COLUMNS", "Block", "concatenate", "gather"]

T = TypeVar("T")

# A design without columns, of as many rows as the features have.
NO_COLUMNS: NDArray[np.float64] = np.empty((0, 0))

# Of a tile: 800 kilobytes, so that two or three such arrays are in the second cache of a processor.
_NUMBERS = 100_000


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows.

    Attributes
    ----------
    start : int
        Index of the first row in the whole source.
    X : ndarray (b, d)
        Features, float64 or float32, C-contiguous. May be a view of the caller's data: never write into it.
    design : ndarray (b, q)
        Dense design columns, float64: the ones to remove first, then the preserved ones. No intercept. Without metadata
        there are none, q = 0.
    codes : tuple of ndarray (b,)
        One array of level indices per absorbed factor (see `residmix.design.fit`).
    weight : ndarray (b,) or None
        Sample weights, float64, non-negative. None means 1 for every row.
    """

    start: int
    X: NDArray[Any]
    design: NDArray[np.float64] = field(default_factory=lambda: NO_COLUMNS)
    codes: tuple[NDArray[np.integer[Any]], ...] = ()
    weight: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.design is NO_COLUMNS:
            object.__setattr__(self, "design", np.empty((len(self.X), 0)))

    @property
    def n_rows(self) -> int:
        return len(self.X)

    def select(self, rows: slice | NDArray[np.integer[Any]]) -> Block:
        """Return some rows of this block, as views if `rows` is a slice; ``start`` moves with a slice."""
        if isinstance(rows, slice):
            codes, start = tuple(code[rows] for code in self.codes), self.start + rows.start
            return Block(
                start, self.X[rows], self.design[rows], codes, None if self.weight is None else self.weight[rows]
            )
        # take copies whole rows at once, where an index in brackets goes number by number
        return Block(
            self.start,
            self.X.take(rows, axis=0),
            self.design.take(rows, axis=0),
            tuple(code.take(rows) for code in self.codes),
            None if self.weight is None else self.weight.take(rows),
        )

    def tiles(self) -> Iterator[tuple[slice, Block]]:
        """Yield runs of rows that are few enough to stay near the processor over several steps, and where they are."""
        size = max(16, _NUMBERS // max(1, self.X.shape[1]))
        for first in range(0, self.n_rows, size):
            run = slice(first, min(first + size, self.n_rows))
            yield run, self if size >= self.n_rows else self.select(run)

    def by_tile(self, function: Callable[[Block], T], merge: Callable[[T, T], T]) -> T:
        """Return ``function(block)``, merged from those of one tile after the other."""
        return reduce(merge, (function(tile) for _, tile in self.tiles()))


def gather(index: NDArray[np.integer[Any]], features: NDArray[np.integer[Any]] | None, block: Block) -> list[Block]:
    """Return copies of the rows of a block that are in a sorted index, if there are any: a list of one or none.

    Parameters
    ----------
    index : ndarray of int
        Sorted, without repeats; in the whole source.
    features : ndarray of int, optional
        Which columns of X are kept. Default: all.
    block : Block
    """
    low, high = np.searchsorted(index, (block.start, block.start + block.n_rows))
    if low == high:
        return []
    own = block.select(index[low:high] - block.start)
    return [own if features is None else replace(own, X=own.X[:, features])]


def concatenate(blocks: list[Block]) -> Block:
    """Join blocks into one; ``start`` is the first one's."""
    first = blocks[0]
    weights = None
    if any(block.weight is not None for block in blocks):
        weights = np.concatenate([np.ones(b.n_rows) if b.weight is None else b.weight for b in blocks])
    return Block(
        first.start,
        np.concatenate([block.X for block in blocks]),
        np.concatenate([block.design for block in blocks]),
        tuple(np.concatenate(codes) for codes in zip(*(block.codes for block in blocks), strict=True)),
        weights,
    )
