"""Rows read piece by piece: from files, or from batches of a callable."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.checks import check_weight, check_weight_values
from residmix.rows.ordered import ordered_map
from residmix.rows.rows import Rows
from residmix.rows.threads import n_threads
from residmix.sources.array import MemoryTable, clean_metadata
from residmix.sources.frames import is_dask, refuse_unread, require_columns
from residmix.sources.recipe import Recipe
from residmix.sources.table import Table

__all__ = ["BatchTable", "OnePassTable", "StreamRows", "StreamTable", "batch_table", "beside", "recut"]

T = TypeVar("T")

BATCH_BYTES = 1 << 22  # read at a time: large enough for a design to be built at leisure, small beside a cache of RAM


class StreamTable(Table):
    """A table that is read piece by piece, as often as wanted, and is never in memory as a whole.

    Parameters
    ----------
    head : MemoryTable
        No rows, or a few: what the columns are called and hold.
    n_rows : int, optional
        If known.
    batch_rows : int, optional
        Rows read at a time. Default: about 4 MB of them.
    """

    def __init__(self, head: MemoryTable, n_rows: int | None = None, batch_rows: int | None = None) -> None:
        if batch_rows is not None and batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1; got {batch_rows}")
        self.head, self._n_rows, self.batch_rows = head, n_rows, batch_rows
        self.named, self.columns, self.numeric_columns = head.named, head.columns, head.numeric_columns
        self.has_metadata, self.metadata_columns = head.has_metadata, head.metadata_columns

    @abstractmethod
    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        """Yield the rows in order, as tables in memory of about `piece_rows` rows with at least `columns`."""

    @property
    def n_rows(self) -> int:
        if self._n_rows is None:
            self.count(sum(piece.n_rows for piece in self.pieces((), self.piece_rows(1))))
        assert self._n_rows is not None
        return self._n_rows

    def count(self, seen: int) -> None:
        """Remember how many rows a whole pass has seen, and refuse a source that gives another number each time."""
        if self._n_rows is None:
            if seen == 0:
                raise ValueError("the source has no rows; at least one is needed")
            self._n_rows = seen
        elif seen != self._n_rows:
            raise ValueError(
                f"the source gave {self._n_rows} rows in the first pass, but {seen} in a later one; it must give the "
                "same rows each time"
            )

    def piece_rows(self, n_columns: int) -> int:
        """Return how many rows of `n_columns` columns are read at a time."""
        return self.batch_rows or max(1, BATCH_BYTES // (8 * max(1, n_columns)))

    def with_metadata(self, metadata: Any) -> StreamTable:
        """Return the same features with metadata in memory, whose rows have the same order."""
        return _Beside(self, clean_metadata(metadata))

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        if columns is not None:
            require_columns(columns, self.metadata_columns, "metadata" if self.has_metadata else "the table")
        seen = 0
        read = columns if columns is not None or self.has_metadata else self.columns
        for piece in self.pieces(read, self.piece_rows(len(self.metadata_columns if columns is None else columns))):
            seen += piece.n_rows
            yield piece.metadata(columns)
        self.count(seen)

    def column_types(self) -> Mapping[str, Any]:
        return self.head.column_types()

    def column_pieces(self, name: str, n_rows: int) -> Iterator[Any]:
        yield from (piece.X for piece in self.pieces((name,), n_rows))

    def batches(self) -> Iterator[Table]:
        yield from self.pieces(None, self.piece_rows(len(self.columns)))

    def settled(self, recipe: Recipe) -> tuple[Recipe, NDArray[np.float64] | None]:
        """Return a recipe that pieces can follow, its weights looked at, and weights that came as an array."""
        design, weight, array = recipe.design, recipe.weight, None
        if design.array_width is None:
            wanted = (*design.columns, *(design.preserved_columns if recipe.preserved else ()))
            require_columns(wanted, self.metadata_columns, "metadata" if self.has_metadata else "the table")
        if isinstance(weight, str):
            require_columns((weight,), self.metadata_columns, "sample_weight")
            self._check_weight_column(weight)
        else:
            weight, array = None, check_weight(weight, self.n_rows)
        return replace(recipe, weight=weight, dtype=self.head.matrix(recipe.features)[0].dtype), array

    def _check_weight_column(self, name: str) -> None:
        """Look at the weights in a pass over their column alone, so that later passes needn't."""
        start, positive = 0, False
        for piece in self.pieces((name,), self.piece_rows(1)):
            values = piece.weight_column(name)
            check_weight_values(values, start)
            start, positive = start + len(values), positive or bool(values.any())
        self.count(start)
        if not positive:
            raise ValueError(f"sample_weight {name!r} is 0 for every row; at least one must not be zero")

    def rows_of(self, recipe: Recipe) -> Rows:
        return StreamRows(self, *self.settled(recipe))


class StreamRows(Rows):
    """Rows of a stream: who is free reads a batch and computes on it; a bounded number of them is in memory.

    However the source is cut into files, row groups or batches, blocks begin at multiples of ``block_rows``.
    """

    def __init__(self, table: StreamTable, recipe: Recipe, weight: NDArray[np.float64] | None = None) -> None:
        self._table, self._recipe, self._weight = table, recipe, weight
        self.n_rows, self.n_features = table.n_rows, len(recipe.features)
        self.dtype, self.block_rows, self.paths = recipe.dtype, recipe.block_rows, table.paths

    def with_block_rows(self, block_rows: int) -> StreamRows:
        return StreamRows(self._table, replace(self._recipe, block_rows=block_rows), self._weight)

    def _batches(self) -> Generator[tuple[int, list[MemoryTable], NDArray[np.float64] | None]]:
        recipe = self._recipe
        wanted = self._table.piece_rows(len(recipe.columns))
        # Whole blocks, so that a batch can be worked on without its neighbours.
        batch_rows = max(1, wanted // self.block_rows) * self.block_rows
        start = 0
        for pieces in recut(self._table.pieces(recipe.columns, batch_rows), batch_rows):
            stop = start + sum(piece.n_rows for piece in pieces)
            yield start, pieces, None if self._weight is None else self._weight[start:stop]
            start = stop
        self._table.count(start)

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        work = partial(self._recipe.apply, function)
        with closing(self._batches()) as batches:
            for results in ordered_map(work, batches, ahead=n_threads() + 2):
                yield from results
        self._recipe.finite.proven = True


def recut(pieces: Iterable[MemoryTable], n_rows: int) -> Iterator[list[MemoryTable]]:
    """Yield runs of exactly `n_rows` rows (the last may be shorter), each as views of the pieces it lies in."""
    run: list[MemoryTable] = []
    missing = n_rows
    for piece in pieces:
        low = 0
        while low < piece.n_rows:
            part = piece[low : low + missing]
            run.append(part)
            low += part.n_rows
            missing -= part.n_rows
            if missing == 0:
                yield run
                run, missing = [], n_rows
    if run:
        yield run


class _Beside(StreamTable):
    """A stream of features beside metadata in memory."""

    def __init__(self, stream: StreamTable, metadata: Any) -> None:
        if len(metadata) != stream.n_rows:
            raise ValueError(f"X has {stream.n_rows} rows but metadata has {len(metadata)}; pass the same rows")
        super().__init__(MemoryTable(stream.head.X, metadata[:0], stream.columns), stream.n_rows, stream.batch_rows)
        self._stream, self._metadata, self.paths = stream, metadata, stream.paths

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        own = set(self.columns)
        read = None if columns is None else [name for name in columns if name in own]
        return beside(self._stream.pieces(read, piece_rows), self._metadata)


class BatchTable(StreamTable):
    """Batches from a callable or an iterable, which must give the same rows each time.

    Each batch is an array, a frame, or a pair (features, metadata).
    """

    def __init__(self, source: Callable[[], Iterator[Any]] | Iterable[Any]) -> None:
        self._source = source
        first = next(iter(self._read()), None)
        if first is None:
            raise ValueError("the source of batches is empty; it must give at least one batch")
        super().__init__(first[:0])

    def _read(self) -> Iterator[MemoryTable]:
        for batch in self._source() if callable(self._source) else self._source:
            yield _one_batch(batch)

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        for i, piece in enumerate(self._read()):
            if piece.columns != self.columns or piece.metadata_columns != self.metadata_columns:
                raise ValueError(
                    f"the columns of batch {i} differ from those of the first batch: {_difference(piece, self.head)}"
                )
            yield piece


def _difference(piece: MemoryTable, head: MemoryTable) -> str:
    for got, expected in ((piece.columns, head.columns), (piece.metadata_columns, head.metadata_columns)):
        lacking = [name for name in expected if name not in got]
        if lacking:
            return f"{lacking[0]!r} is missing"
        more = [name for name in got if name not in expected]
        if more:
            return f"{more[0]!r} is new"
    return "their order differs"


def _one_batch(batch: Any) -> MemoryTable:
    X, metadata = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    refuse_unread(X, "X")
    refuse_unread(metadata, "metadata")
    if isinstance(X, MemoryTable):
        return X if metadata is None else X.with_metadata(metadata)
    if isinstance(X, Table) or is_dask(X) or is_dask(metadata) or callable(X):
        raise TypeError(f"a batch must be an array, a frame or a pair of them; got {type(batch).__name__}")
    return MemoryTable.make(X, metadata)


class OnePassTable(Table):
    """An iterator of batches, which can be read only once: it works with `partial_fit`, but not with `fit`."""

    one_pass = True
    named = False
    columns = numeric_columns = metadata_columns = ()
    has_metadata = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def _refuse(self) -> TypeError:
        return TypeError(
            "this iterator of batches can be read only once, but fit needs several passes; pass a callable that "
            "returns a new iterator (for example lambda: read_batches()), or use partial_fit"
        )

    @property
    def n_rows(self) -> int:
        raise self._refuse()

    def feature_names(self, features: Any = None, *, exclude: Iterable[str] = ()) -> tuple[str, ...]:
        raise self._refuse()

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        raise self._refuse()

    def rows(self, features: Sequence[str] | None = None, **options: Any) -> Rows:
        raise self._refuse()

    def rows_of(self, recipe: Recipe) -> Rows:
        raise self._refuse()

    def batches(self) -> Iterator[Table]:
        return (_one_batch(batch) for batch in self._iterator)


def batch_table(source: Callable[[], Iterator[Any]] | Iterable[Any]) -> Table:
    """Return a table over batches; an iterator that can be read once gives one that only `partial_fit` takes."""
    if isinstance(source, Iterator):
        return OnePassTable(source)
    return BatchTable(source)


def beside(pieces: Iterator[MemoryTable], metadata: Any) -> Iterator[MemoryTable]:
    """Yield the pieces together with metadata in memory."""
    start = 0
    for piece in pieces:
        stop = start + piece.n_rows
        yield piece if metadata is None else MemoryTable(piece.X, metadata[start:stop], piece.columns)
        start = stop
