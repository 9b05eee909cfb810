"""Rows cut into blocks: the one thing that statistics ever see of a data source.

A block is a run of consecutive rows. Where blocks begin depends on the problem only (``block_rows``), never on the
number of threads, files or workers; and :meth:`Rows.map` yields results in block order. A sum taken over the
results in that order is therefore the same, bit for bit, wherever the rows live and however many hands compute.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial, reduce
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import NO_COLUMNS, Block, concatenate, gather
from residmix.rows.checks import Finite
from residmix.rows.ordered import fold_groups, group_blocks, ordered_map, ordered_sum
from residmix.rows.statistic import Statistic, after, both
from residmix.rows.threads import one_blas_thread

__all__ = ["ArrayRows", "MappedRows", "ObservedRows", "Rows", "fold"]

T = TypeVar("T")


class Rows(ABC):
    """Rows that can be visited block by block, as often as wanted."""

    n_rows: int
    n_features: int
    dtype: np.dtype[Any]
    block_rows: int
    local: bool = True  # whether `map` computes in this process, so that a function may keep what it sees
    paths: tuple[str | os.PathLike[str], ...] = ()  # files that are read on each visit
    held: NDArray[Any] | None = None  # the array in memory that is read on each visit

    @abstractmethod
    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        """Yield ``function(block)`` for every block, in block order, computed by as many hands as there are."""

    @abstractmethod
    def with_block_rows(self, block_rows: int) -> Rows:
        """Return the same rows cut into blocks of another length."""

    def fold(
        self, step: Callable[[Block], T], merge: Callable[[T, T], T], sound: Callable[[T], bool] | None = None
    ) -> T:
        """Return the `total` of a :class:`Statistic` of these parts."""
        return self.total(Statistic(step, merge, sound))

    def total(self, statistic: Statistic[T]) -> T:
        """Return the sum of ``step(block)``: in block order inside groups of blocks, then over the groups.

        The groups (see :func:`group_blocks`) let a cluster send back a few hundred sums instead of one for every
        block; they are the same wherever the rows live, so the result is, too.
        """
        n_blocks, merge = -(-self.n_rows // self.block_rows), statistic.merge
        return reduce(merge, fold_groups(self.map(statistic.step), merge, group_blocks(n_blocks)))

    def mapped(self, change: Callable[[Block], Block]) -> Rows:
        """Return rows whose blocks are `change(block)`, computed on each visit and never stored."""
        return MappedRows(self, change)

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        """Gather the rows `index` (sorted, without repeats) into one block: a subsample to find starts on."""
        found = self.map(partial(gather, np.asarray(index), None))
        return concatenate([part for parts in found for part in parts])


class _RowsAround(Rows):
    """Rows that stand for others, of which they are as many, of the same shape and from the same files or array."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.n_rows, self.block_rows, self.paths = rows.n_rows, rows.block_rows, rows.paths
        self.n_features, self.dtype, self.local, self.held = rows.n_features, rows.dtype, rows.local, rows.held

    def with_block_rows(self, block_rows: int) -> Self:
        around = copy(self)
        around._rows, around.block_rows = self._rows.with_block_rows(block_rows), block_rows
        return around

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        return self._rows.take(index)


class MappedRows(_RowsAround):
    """Rows seen through a function of blocks."""

    def __init__(self, rows: Rows, change: Callable[[Block], Block]) -> None:
        super().__init__(rows)
        self._change = change

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        return self._rows.map(partial(after, self._change, function))

    def total(self, statistic: Statistic[T]) -> T:
        return self._rows.total(statistic.of(self._change))

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        return self._change(self._rows.take(index))


class ObservedRows(_RowsAround):
    """The same rows; each visited block is also passed to an observer, which saves a pass of its own.

    Parameters
    ----------
    rows : Rows
    observe : callable
        Returns a list of what is to be kept of a block. The first visit that finds anything is the last one observed.

    Attributes
    ----------
    kept : list
        What one visit found, in the order of the rows.
    """

    def __init__(self, rows: Rows, observe: Callable[[Block], list[Any]]) -> None:
        super().__init__(rows)
        self._observe = observe
        self.kept: list[Any] = []

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        if self.kept:
            yield from self._rows.map(function)
            return
        found = []
        for result, seen in self._rows.map(partial(both, function, self._observe)):
            found += seen
            yield result
        self.kept += found

    def total(self, statistic: Statistic[T]) -> T:
        if self.kept:
            return self._rows.total(statistic)
        total: T
        total, found = self._rows.total(statistic.beside(self._observe))
        self.kept += found
        return total


class ArrayRows(Rows):
    """Rows of arrays in memory or memory-mapped; blocks are views where they can be, threads share them.

    Parameters
    ----------
    X : ndarray (n, d')
        In any memory order.
    design, codes, weight
        As in :class:`Block`, for all rows.
    block_rows : int
        Rows in a block.
    columns : ndarray of int, optional
        The columns of `X` that are features, gathered block by block. Default: all.
    finite : Finite, optional
        Looks at every block until a whole pass has been clean.
    """

    def __init__(
        self,
        X: NDArray[Any],
        design: NDArray[np.float64] = NO_COLUMNS,
        codes: tuple[NDArray[np.integer[Any]], ...] = (),
        weight: NDArray[np.float64] | None = None,
        block_rows: int = 8192,
        *,
        columns: NDArray[np.integer[Any]] | None = None,
        finite: Finite | None = None,
    ) -> None:
        self.n_rows, self.held = len(X), X
        self.n_features = X.shape[1] if columns is None else len(columns)
        self.dtype = X.dtype
        self.block_rows = block_rows
        self._whole = Block(0, X, design, codes, weight)
        self._columns, self._finite = columns, finite

    def with_block_rows(self, block_rows: int) -> ArrayRows:
        whole = self._whole
        return ArrayRows(
            whole.X,
            whole.design,
            whole.codes,
            whole.weight,
            block_rows,
            columns=self._columns,
            finite=self._finite,
        )

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        index = np.asarray(index)
        everything = len(index) == self.n_rows and bool((index == np.arange(self.n_rows)).all())
        taken = self._select(slice(0, self.n_rows) if everything else index)  # all rows need no copy
        if self._finite is not None and not self._finite.proven:
            self._finite(taken.X, 0, index)
        return taken

    def block(self, start: int) -> Block:
        """Return the block that begins at row `start`, as views where the memory order allows."""
        if self.n_rows <= self.block_rows and self._columns is None and self._whole.X.flags.c_contiguous:
            return self._whole
        return self._select(slice(start, start + self.block_rows))

    def _select(self, rows: slice | NDArray[np.integer[Any]]) -> Block:
        part = self._whole.select(rows)
        X = part.X if self._columns is None else part.X[:, self._columns]
        contiguous = np.ascontiguousarray(X)
        return part if contiguous is part.X else replace(part, X=contiguous)

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        starts = range(0, self.n_rows, self.block_rows)
        yield from ordered_map(self._visit(function), starts)
        if self._finite is not None:
            self._finite.proven = True

    def total(self, statistic: Statistic[T]) -> T:
        visit, merge = self._visit(statistic.step, statistic.sound), statistic.merge
        n_blocks = -(-self.n_rows // self.block_rows)
        size = group_blocks(n_blocks)

        def group(start: int) -> T:
            blocks = range(start, min(start + size * self.block_rows, self.n_rows), self.block_rows)
            return reduce(merge, map(visit, blocks))

        if n_blocks == 1:
            with one_blas_thread():
                total = visit(0)
        else:
            total = ordered_sum(visit if size == 1 else group, range(0, self.n_rows, size * self.block_rows), merge)
        if self._finite is not None:
            self._finite.proven = True
        return total

    def _visit(self, function: Callable[[Block], T], sound: Callable[[T], bool] | None = None) -> Callable[[int], T]:
        """Return ``function(block)`` as a function of where the block begins, which looks at the block on the way."""
        finite = None if self._finite is None or self._finite.proven else self._finite

        def visit(start: int) -> T:
            block = self.block(start)
            if finite is not None and sound is None:
                finite(block.X, start)
            result = function(block)
            if finite is not None and sound is not None and not sound(result):
                finite(block.X, start)
            return result

        return visit


def fold(
    rows: Rows, step: Callable[[Block], T], merge: Callable[[T, T], T], sound: Callable[[T], bool] | None = None
) -> T:
    """Return the merged ``si = step(block i)``, in the fixed order of :meth:`Rows.total`.

    That order depends on the number of blocks only, never on how many hands there are. For the arguments see
    :class:`residmix.rows.statistic.Statistic`.
    """
    return rows.fold(step, merge, sound)
