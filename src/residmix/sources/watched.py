"""Rows that tell how far a visit to them has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.sources.rows import Block, Rows, RowsAround

__all__ = ["WatchedRows"]

T = TypeVar("T")


class WatchedRows(RowsAround):
    """The same rows; whenever a block is done, `tell` gets its number of rows, in the thread that did it.

    Parameters
    ----------
    rows : Rows
        In this process: from a cluster nothing is heard before the end.
    tell : callable
    """

    def __init__(self, rows: Rows, tell: Callable[[int], None]) -> None:
        super().__init__(rows)
        self._tell = tell

    def with_block_rows(self, block_rows: int) -> WatchedRows:
        return WatchedRows(self._rows.with_block_rows(block_rows), self._tell)

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        return self._rows.take(index)

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        return self._rows.map(self._telling(function))

    def fold(
        self, partial: Callable[[Block], T], merge: Callable[[T, T], T], sound: Callable[[T], bool] | None = None
    ) -> T:
        return self._rows.fold(self._telling(partial), merge, sound)

    def _telling(self, function: Callable[[Block], T]) -> Callable[[Block], T]:
        def visit(block: Block) -> T:
            result = function(block)
            self._tell(block.n_rows)
            return result

        return visit
