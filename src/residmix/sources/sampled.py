"""Rows that keep a few of themselves aside while they are read for something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.sources.rows import Block, Rows, concatenate, gather

__all__ = ["SampledRows"]

T = TypeVar("T")


class SampledRows(Rows):
    """The same rows; the first fold over them also gathers the rows `index`, so that they cost no pass of their own.

    Parameters
    ----------
    rows : Rows
        In memory, in files or on a cluster.
    index : ndarray of int
        Sorted, without repeats.
    """

    def __init__(self, rows: Rows, index: NDArray[np.integer[Any]], kept: list[Block] | None = None) -> None:
        self._rows, self._index, self._kept = rows, index, [] if kept is None else kept
        self.n_rows, self.block_rows = rows.n_rows, rows.block_rows
        self.n_features, self.dtype, self.local = rows.n_features, rows.dtype, rows.local

    def with_block_rows(self, block_rows: int) -> SampledRows:
        return SampledRows(self._rows.with_block_rows(block_rows), self._index, self._kept)

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        return self._rows.map(function)

    def fold(
        self, partial: Callable[[Block], T], merge: Callable[[T, T], T], sound: Callable[[T], bool] | None = None
    ) -> T:
        if self._kept:
            return self._rows.fold(partial, merge, sound)
        first = None if sound is None else lambda both: sound(both[0])
        total, parts = self._rows.fold(_WithRows(partial, self._index), _MergeBoth(merge), first)
        self._kept += parts
        return total

    def sample(self) -> Block:
        """Return the rows `index`."""
        return concatenate(self._kept) if self._kept else self._rows.take(self._index)


@dataclass(frozen=True)
class _WithRows:
    partial: Callable[[Block], Any]
    index: NDArray[np.integer[Any]]

    def __call__(self, block: Block) -> tuple[Any, list[Block]]:
        own = gather(block, self.index)
        return self.partial(block), [] if own is None else [own]


@dataclass(frozen=True)
class _MergeBoth:
    merge: Callable[[Any, Any], Any]

    def __call__(self, one: tuple[Any, list[Block]], two: tuple[Any, list[Block]]) -> tuple[Any, list[Block]]:
        return self.merge(one[0], two[0]), one[1] + two[1]
