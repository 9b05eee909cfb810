"""Rows that arrive piece by piece: from files, or from batches that a callable hands out."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.rows import Rows
from residmix.sources.array import MemoryTable, clean_metadata
from residmix.sources.table import DEFAULT_BLOCK_ROWS

if TYPE_CHECKING:
    from residmix.design.fit import Design


from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from residmix.rows.checks import Finite, check_weight, check_weight_values
from residmix.rows.ordered import ordered_map
from residmix.rows.scratch import scratch
from residmix.rows.threads import n_threads
from residmix.sources.frames import fill_rows, is_dask, refuse_unread, require_columns
from residmix.sources.table import Table

if TYPE_CHECKING:
    from residmix.design.fit import Design

__all__ = ["BatchTable", "Recipe", "StreamRows", "StreamTable", "batch_table", "beside"]

T = TypeVar("T")

BATCH_BYTES = 1 << 22  # read at a time: large enough for a design to be built at leisure, small beside a cache of RAM


@dataclass(frozen=True)
class Recipe:
    """How pieces of a table become blocks; picklable, so that workers elsewhere can follow it."""

    features: tuple[str, ...]
    dtype: np.dtype[Any]
    design: Design | None
    preserved: bool
    weight: str | None
    finite: Finite
    block_rows: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of one table that must be read."""
        names = list(self.features)
        if self.design is not None:
            names += [*self.design.columns, *(self.design.preserved_columns if self.preserved else ())]
        if self.weight is not None:
            names.append(self.weight)
        return tuple(dict.fromkeys(names))

    def batch(self, pieces: Sequence[MemoryTable], start: int, weight: NDArray[np.float64] | None) -> Block:
        """Return consecutive pieces, whose first row is row `start`, as one long block.

        Every value is made from its own row only, so how the rows were cut into pieces leaves no trace.
        """
        made = [piece.design(self.design, self.preserved) for piece in pieces]
        if self.weight is not None:
            weight = _joined([piece.weight_column(self.weight) for piece in pieces])
        block = Block(
            start,
            self._matrix(pieces),
            None if self.design is None else _joined([dense for dense, _ in made]),
            tuple(_joined(list(codes)) for codes in zip(*(codes for _, codes in made), strict=True)),
            weight,
        )
        if not self.finite.proven:
            self.finite(block.X, start)
        return block

    def _matrix(self, pieces: Sequence[MemoryTable]) -> NDArray[Any]:
        """Return the features of all pieces as one matrix; a view, if it is there already."""
        parts = [piece.feature_columns(self.features) for piece in pieces]
        for part in parts:
            for column in [part] if isinstance(part, np.ndarray) else part:
                if not np.can_cast(column.dtype, self.dtype):
                    raise ValueError(
                        f"the first rows are {self.dtype}, later ones {column.dtype}; use one type throughout"
                    )
        first = parts[0]
        if len(parts) == 1 and isinstance(first, np.ndarray):
            return np.ascontiguousarray(first, self.dtype)
        whole = scratch((sum(piece.n_rows for piece in pieces), len(self.features)), self.dtype)
        low = 0
        for piece, part in zip(pieces, parts, strict=True):
            rows = whole[low : low + piece.n_rows]
            if isinstance(part, np.ndarray):
                rows[...] = part
            else:
                fill_rows(rows, part)
            low += piece.n_rows
        return whole

    def apply(
        self,
        function: Callable[[Block], T],
        batch: tuple[int, Sequence[MemoryTable], NDArray[np.float64] | None],
    ) -> list[T]:
        """Return `function` of every block of a batch."""
        start, pieces, weight = batch
        long = self.batch(pieces, start, weight)
        return [
            function(long.select(slice(low, low + self.block_rows))) for low in range(0, long.n_rows, self.block_rows)
        ]


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
                raise ValueError("the source has no rows")
            self._n_rows = seen
        elif seen != self._n_rows:
            raise ValueError(
                f"the source gave {self._n_rows} rows first and {seen} in a later pass; it must give the same rows "
                "each time it is read"
            )

    def piece_rows(self, n_columns: int) -> int:
        """Return how many rows of `n_columns` columns are read at a time."""
        return self.batch_rows or max(1, BATCH_BYTES // (8 * max(1, n_columns)))

    def with_metadata(self, metadata: Any) -> StreamTable:
        """Return the same features beside metadata in memory, whose rows are in the same order."""
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

    def batches(self) -> Iterator[Table]:
        yield from self.pieces(None, self.piece_rows(len(self.columns)))

    def recipe(
        self,
        features: Sequence[str] | None,
        design: Design | None,
        weight: Any,
        preserved: bool,
        block_rows: int,
        allow_nan: bool,
    ) -> tuple[Recipe, NDArray[np.float64] | None]:
        """Return what `rows` was asked for as a recipe, and weights that came as an array."""
        names = self.columns if features is None else tuple(features)
        require_columns(names, self.columns, "X")
        if design is not None and design.array_width is None:
            wanted = (*design.columns, *(design.preserved_columns if preserved else ()))
            require_columns(wanted, self.metadata_columns, "metadata" if self.has_metadata else "the table")
        column, array = None, None
        if isinstance(weight, str):
            require_columns((weight,), self.metadata_columns, "sample_weight")
            self._check_weight_column(weight)
            column = weight
        else:
            array = check_weight(weight, self.n_rows)
        X = self.head.matrix(names)[0]
        finite = Finite(names, allow_nan)
        return Recipe(names, X.dtype, design, preserved, column, finite, block_rows), array

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

    def rows(
        self,
        features: Sequence[str] | None = None,
        *,
        design: Design | None = None,
        weight: Any = None,
        preserved: bool = False,
        block_rows: int = DEFAULT_BLOCK_ROWS,
        allow_nan: bool = False,
    ) -> Rows:
        recipe, array = self.recipe(features, design, weight, preserved, block_rows, allow_nan)
        return StreamRows(self, recipe, array)


class StreamRows(Rows):
    """Rows of a stream: one thread reads ahead, the others compute; a bounded number of batches is in memory.

    However the source is cut into files, row groups or batches, blocks begin at multiples of ``block_rows``.
    """

    def __init__(self, table: StreamTable, recipe: Recipe, weight: NDArray[np.float64] | None = None) -> None:
        self._table, self._recipe, self._weight = table, recipe, weight
        self.n_rows, self.n_features = table.n_rows, len(recipe.features)
        self.dtype, self.block_rows, self.paths = recipe.dtype, recipe.block_rows, table.paths

    def with_block_rows(self, block_rows: int) -> StreamRows:
        return StreamRows(self._table, replace(self._recipe, block_rows=block_rows), self._weight)

    def _batches(self) -> Iterator[tuple[int, list[MemoryTable], NDArray[np.float64] | None]]:
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
        with prefetch(self._batches()) as batches:
            for results in ordered_map(work, batches, ahead=n_threads() + 1):
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


_END: Any = object()


class prefetch:
    """Iterate in a thread of its own, at most two items ahead; with one thread, in this one."""

    def __init__(self, items: Iterator[T], depth: int = 2) -> None:
        self._items, self._depth = items, depth

    def __enter__(self) -> Iterator[Any]:
        if n_threads() == 1:
            return self._items
        self._pool = ThreadPoolExecutor(1)
        return self._read()

    def _read(self) -> Iterator[Any]:
        pending: deque[Future[Any]] = deque(self._pool.submit(next, self._items, _END) for _ in range(self._depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(self._pool.submit(next, self._items, _END))
            yield item

    def __exit__(self, *raised: object) -> None:
        if hasattr(self, "_pool"):
            self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._items, "close", None)
        if close is not None:
            close()


class _Beside(StreamTable):
    """A stream of features beside metadata in memory."""

    def __init__(self, stream: StreamTable, metadata: Any) -> None:
        if len(metadata) != stream.n_rows:
            raise ValueError(f"X has {stream.n_rows} rows but metadata has {len(metadata)}")
        super().__init__(MemoryTable(stream.head.X, metadata[:0], stream.columns), stream.n_rows, stream.batch_rows)
        self._stream, self._metadata, self.paths = stream, metadata, stream.paths

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        read = None if columns is None else [name for name in columns if name in self.columns]
        start = 0
        for piece in self._stream.pieces(read, piece_rows):
            stop = start + piece.n_rows
            yield MemoryTable(piece.X, self._metadata[start:stop], piece.columns)
            start = stop


class BatchTable(StreamTable):
    """Batches from a callable or an iterable, which must give the same rows each time.

    Each batch is an array, a frame, or a pair (features, metadata).
    """

    def __init__(self, source: Callable[[], Iterator[Any]] | Iterable[Any]) -> None:
        self._source = source
        first = next(iter(self._read()), None)
        if first is None:
            raise ValueError("the source of batches is empty")
        super().__init__(first[:0])

    def _read(self) -> Iterator[MemoryTable]:
        for batch in self._source() if callable(self._source) else self._source:
            yield _one_batch(batch)

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        for i, piece in enumerate(self._read()):
            if piece.columns != self.columns or piece.metadata_columns != self.metadata_columns:
                raise ValueError(f"batch {i} has other columns than the first batch: {_difference(piece, self.head)}")
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
    """An iterator of batches that can be read once: enough for `partial_fit`, too little for `fit`."""

    one_pass = True
    named = False
    columns = numeric_columns = metadata_columns = ()
    has_metadata = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def _refuse(self) -> TypeError:
        return TypeError(
            "this iterator of batches can be read once, but fitting reads the rows several times; pass a callable "
            "that returns a new iterator (for example lambda: read_batches()), or use partial_fit"
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

    def batches(self) -> Iterator[Table]:
        return (_one_batch(batch) for batch in self._iterator)


def batch_table(source: Callable[[], Iterator[Any]] | Iterable[Any]) -> Table:
    """Return a table over batches; an iterator that can be read once gives one that only `partial_fit` takes."""
    if isinstance(source, Iterator):
        return OnePassTable(source)
    return BatchTable(source)


def beside(pieces: Iterator[MemoryTable], metadata: Any) -> Iterator[MemoryTable]:
    """Yield the pieces with metadata that is in memory beside them."""
    start = 0
    for piece in pieces:
        stop = start + piece.n_rows
        yield piece if metadata is None else MemoryTable(piece.X, metadata[start:stop], piece.columns)
        start = stop
