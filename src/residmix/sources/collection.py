"""Dask arrays and data frames as tables."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np

from residmix.sources.array import MemoryTable, clean_metadata
from residmix.sources.dask import ClusterTable, default_client, unpacked
from residmix.sources.frames import is_dask
from residmix.sources.stream import beside

__all__ = ["CollectionTable", "collection_table"]


class Collection:
    """The partitions of one Dask array (in runs of whole rows) or data frame.

    Parameters
    ----------
    data : dask array (n, d) or dask data frame
    name : str
        Its name in messages.
    """

    def __init__(self, data: Any, name: str) -> None:
        import dask

        if not hasattr(data, "to_delayed"):
            raise TypeError(
                f"{name} is a {type(data).__name__}, which has no partitions of rows; pass a Dask array or data frame"
            )
        self.is_array = hasattr(data, "rechunk")
        if self.is_array:
            data = data[:, None] if data.ndim == 1 and name == "metadata" else data
            if data.ndim != 2:
                raise ValueError(
                    f"Expected 2D array, got {data.ndim}D Dask array instead: {name} must be (rows, columns)"
                )
            data = data.rechunk({1: -1})
            lengths = list(data.chunks[0])
        else:
            if getattr(data, "ndim", 2) == 1 and name == "metadata":
                data = data.to_frame()
            if getattr(data, "ndim", 1) != 2:
                raise TypeError(f"{name} is a Dask {type(data).__name__}; pass an array or a data frame")
            lengths = [np.nan]
        self.data, self.name = data, name
        if np.isnan(lengths).any():
            lengths = list(dask.compute(*(dask.delayed(len)(part) for part in self.partitions(None))))
        self.lengths = [int(length) for length in lengths]
        self.offsets = [0, *accumulate(self.lengths)]
        if self.n_rows == 0:
            raise ValueError(f"Found array with 0 sample(s): the Dask {name} has no rows")

    @property
    def n_rows(self) -> int:
        return self.offsets[-1]

    @property
    def kind(self) -> str:
        return "array" if self.is_array else "data frame"

    def head(self) -> Any:
        """Return an empty array or frame with the right columns."""
        return np.empty((0, self.data.shape[1]), self.data.dtype) if self.is_array else self.data._meta

    def partitions(self, columns: Sequence[str] | None) -> list[Any]:
        """Return one Delayed for each partition; of a data frame, with `columns` only."""
        if self.is_array:
            return list(self.data.to_delayed()[:, 0])
        data = self.data if columns is None else self.data[list(columns)]
        return list(data.to_delayed())

    def cover(self, start: int, stop: int) -> list[tuple[int, slice]]:
        """Return the partitions that hold rows ``start:stop``, and which of their rows these are."""
        found = []
        at = bisect_right(self.offsets, start) - 1
        while at < len(self.lengths) and self.offsets[at] < stop:
            low, high = max(start - self.offsets[at], 0), min(stop - self.offsets[at], self.lengths[at])
            if low < high:
                found.append((at, slice(low, high)))
            at += 1
        return found


class CollectionTable(ClusterTable):
    """Rows of Dask collections, computed by the cluster of the client in context, else in this process.

    Parameters
    ----------
    X : Collection
    metadata : Collection, ndarray (n, p), frame or None
    """

    def __init__(self, X: Collection, metadata: Any = None) -> None:
        self._X, self._M = X, metadata
        empty = MemoryTable.empty(X.head())
        if metadata is not None:
            n_rows = metadata.n_rows if isinstance(metadata, Collection) else len(metadata)
            if n_rows != X.n_rows:
                raise ValueError(f"X has {X.n_rows} rows but metadata has {n_rows}; pass the same rows")
            few = metadata.head() if isinstance(metadata, Collection) else metadata[:0]
            empty = MemoryTable(empty.X, clean_metadata(few) if isinstance(metadata, Collection) else few)
        super().__init__(empty, X.n_rows)

    def client(self) -> Any:
        return default_client()

    def bounds(self) -> list[int]:
        return self._X.offsets[1:]

    def with_metadata(self, metadata: Any) -> CollectionTable:
        return collection_table(self._X.data, metadata)

    def _columns(self, columns: Sequence[str] | None) -> tuple[Any, Any]:
        """Return which columns of X and of the metadata are meant."""
        if columns is None:
            return None, None
        if not self.has_metadata:
            return columns, None
        own, beside = set(self.columns), set(self.metadata_columns)
        return [name for name in columns if name in own], [name for name in columns if name in beside] or None

    def pieces(self, columns: Sequence[str] | None, piece_rows: int) -> Iterator[MemoryTable]:
        of_x, of_m = self._columns(columns)
        parts = self._X.partitions(of_x or None)
        beside_parts = self._M.partitions(of_m) if isinstance(self._M, Collection) else None
        for at, part in enumerate(parts):
            start, stop = self._X.offsets[at : at + 2]
            if start == stop:
                continue
            piece = MemoryTable.make(_computed(self._X, at, part))
            if beside_parts is None:
                metadata = None if self._M is None else self._M[start:stop]
            else:
                covered = self._M.cover(start, stop)
                got = [_computed(self._M, i, beside_parts[i]) for i, _ in covered]
                metadata = join_metadata(got, [cut for _, cut in covered])
            yield from beside(iter([piece]), metadata)

    def tasks(self, columns: tuple[str, ...]) -> Callable[[Any, Any, int, int, Any], Any]:
        import dask

        of_x, of_m = self._columns(columns)
        parts = self._X.partitions(of_x or None)
        beside_parts = self._M.partitions(of_m) if isinstance(self._M, Collection) else None
        run = dask.delayed(_run_on_partitions, pure=False)

        def submit(client: Any, work: Any, start: int, stop: int, weight: Any) -> Any:
            covered = self._X.cover(start, stop)
            if beside_parts is None:
                metadata, cuts = (None if self._M is None else self._M[start:stop]), None
            else:
                beside_covered = self._M.cover(start, stop)
                metadata = [beside_parts[i] for i, _ in beside_covered]
                cuts = [cut for _, cut in beside_covered]
            task = run(work, start, weight, [parts[i] for i, _ in covered], [cut for _, cut in covered], metadata, cuts)
            return client.compute(task)

        return submit

    def where(self, start: int, stop: int) -> str:
        found = [i for i, _ in self._X.cover(start, stop)]
        which = f"partition {found[0]}" if len(found) == 1 else f"partitions {found[0]} to {found[-1]}"
        return f"{which} of the Dask {self._X.kind}"

    def unreadable(self, client: Any, start: int, stop: int) -> str | None:
        for collection in (self._X, self._M):
            if isinstance(collection, Collection):
                parts = collection.partitions(None)
                for at, _ in collection.cover(start, stop):
                    if client.compute(parts[at]).exception() is not None:
                        return f"partition {at} of the Dask {collection.kind} {collection.name}"
        return None


def _run_on_partitions(
    packed: bytes,
    start: int,
    weight: Any,
    parts: list[Any],
    cuts: list[slice],
    metadata: Any,
    metadata_cuts: list[slice] | None,
) -> list[Any]:
    pieces = (MemoryTable.make(part)[cut] for part, cut in zip(parts, cuts, strict=True))
    if metadata_cuts is not None:
        metadata = join_metadata(metadata, metadata_cuts)
    return unpacked(packed).run(start, weight, beside(pieces, metadata))


def join_metadata(parts: list[Any], cuts: list[slice]) -> Any:
    """Return rows of consecutive partitions of metadata as one array or frame."""
    cleaned: list[Any] = [clean_metadata(part)[cut] for part, cut in zip(parts, cuts, strict=True)]
    return np.concatenate(cleaned) if isinstance(cleaned[0], np.ndarray) else nw.concat(cleaned)


def _computed(collection: Collection, at: int, part: Any) -> Any:
    try:
        return part.compute()
    except Exception as error:
        error.add_note(f"partition {at} of the Dask {collection.kind} {collection.name} can't be read")
        raise


def collection_table(X: Any, metadata: Any = None) -> CollectionTable:
    """Return a table over a Dask array or data frame, with metadata of its own or in memory.

    Raises
    ------
    TypeError
        If `metadata` is a Dask collection and X is not.
    """
    if not is_dask(X):
        raise TypeError(
            "metadata is a Dask collection, but X isn't; compute the metadata, or make both Dask collections"
        )
    if metadata is not None:
        metadata = Collection(metadata, "metadata") if is_dask(metadata) else clean_metadata(metadata)
    return CollectionTable(Collection(X, "X"), metadata)
