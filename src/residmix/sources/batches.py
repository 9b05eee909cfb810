"""Batches that a callable or an iterable hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from residmix.rows.rows import Rows
from residmix.sources.array import MemoryTable
from residmix.sources.frames import is_dask, refuse_unread
from residmix.sources.recipe import Recipe
from residmix.sources.stream import StreamTable
from residmix.sources.table import Table

__all__ = ["BatchTable", "OnePassTable", "batch_table"]


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

    def rows_of(self, recipe: Recipe) -> Rows:
        raise self._refuse()

    def batches(self) -> Iterator[Table]:
        return (_one_batch(batch) for batch in self._iterator)


def batch_table(source: Callable[[], Iterator[Any]] | Iterable[Any]) -> Table:
    """Return a table over batches; an iterator that can be read once gives one that only `partial_fit` takes."""
    if isinstance(source, Iterator):
        return OnePassTable(source)
    return BatchTable(source)
