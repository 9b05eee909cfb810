"""Files as tables: Parquet, Arrow, CSV and .npy, one or many, read a batch at a time."""

from __future__ import annotations

import glob
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.rows.statistic import Statistic
from residmix.sources.array import MemoryTable
from residmix.sources.columns.lists import list_names, spread
from residmix.sources.files.csv import Csv
from residmix.sources.files.formats import FORMATS, UNREADABLE, format_of, readable
from residmix.sources.files.kept import Kept
from residmix.sources.files.npy import Npy
from residmix.sources.files.part import Part, arrow_table, memory_table
from residmix.sources.recipe import Recipe
from residmix.sources.stream import StreamRows, StreamTable

__all__ = ["FileTable", "find_files"]

T = TypeVar("T")


def find_files(where: Any) -> list[Path]:
    """Return the files of a path, a glob pattern, a folder or a list of them.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if isinstance(where, (list, tuple)):
        return [path for item in where for path in find_files(item)]
    text = os.fspath(where)
    if text == "-":
        return [Path("-")]
    if os.path.isdir(text):
        found = _in_folder(Path(text))
        if not found:
            raise FileNotFoundError(f"folder {text!r} has no file with one of the endings {', '.join(FORMATS)}")
        return found
    if os.path.lexists(text):
        return [Path(text)]
    matched = [Path(path) for path in sorted(glob.glob(text, recursive=True))]
    found = []
    for path in matched:
        if not path.is_dir():
            found.append(path)
        elif format_of(path) is not None:  # what Spark and others write under the name of a file
            found += find_files(path)
    if not found:
        raise FileNotFoundError(f"no file matches {text!r}")
    return found


def _in_folder(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders; a subfolder named as a file must have some."""
    paths = sorted(folder.rglob("*"))
    found = [path for path in paths if readable(path)]
    for path in paths:
        if path.is_dir() and format_of(path) is not None and not any(path in file.parents for file in found):
            raise FileNotFoundError(f"{str(path)!r} is an empty folder with the name of a file; remove it")
    return found


class FileTable(StreamTable):
    """Rows of one or several files of one kind.

    Parameters
    ----------
    parts : tuple of Part
        The files in order.
    head : MemoryTable
        No rows, the columns to see.
    batch_rows : int, optional
        Rows read at a time.
    cache_bytes : int
        Decoded data are kept in memory if all of them take no more than this.
    kept : Kept, optional
        What was kept of CSV files when they were looked at.
    elsewhere : bool
        Whether this is a worker that looks at files by itself, perhaps at copies.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        head: MemoryTable,
        batch_rows: int | None = None,
        *,
        cache_bytes: int = 0,
        kept: Kept | None = None,
        elsewhere: bool = False,
    ) -> None:
        n_rows = sum(part.n_rows for part in parts)
        if n_rows == 0:
            more = f" and the {len(parts) - 1} other files have" if len(parts) > 1 else " has"
            raise ValueError(f"{parts[0].name}{more} no rows")
        super().__init__(head, n_rows, batch_rows)
        self.parts, self.elsewhere = parts, elsewhere
        self.paths = tuple(part.path for part in parts if str(part.path) != "-")
        self._bases = {name: base for base, width in parts[0].lists for name in list_names(base, width)}
        self._cache_bytes, self._kept = cache_bytes, kept
        self._whole: MemoryTable | None = None
        self.was_read = kept is not None
        self._is_large = isinstance(parts[0], Npy) or cache_bytes == 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        many = len(self.parts)
        files = f"{many:,} files" if many > 1 else repr(str(self.parts[0].name))
        names = list(self.columns) if len(self.columns) <= 8 else [*self.columns[:7], "...", self.columns[-1]]
        return f"<{self.n_rows:,} rows x {len(self.columns):,} columns in {files}: {', '.join(names)}>"

    def __getstate__(self) -> dict[str, Any]:
        # what is decoded stays where it is
        return {**self.__dict__, "_whole": None, "_kept": None, "_lock": None, "_is_large": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def covering(self, start: int, stop: int) -> tuple[FileTable, int]:
        """Return the table of just the files that hold rows ``start:stop``, and how many rows are before them."""
        offsets = [0, *accumulate(part.n_rows for part in self.parts)]
        first = bisect_right(offsets, start) - 1
        last = bisect_left(offsets, stop)
        return FileTable(self.parts[first:last], self.head, self.batch_rows, elsewhere=True), offsets[first]

    def fits(self, n_bytes: int) -> bool:
        """Tell whether so much may be kept in memory."""
        return n_bytes <= self._cache_bytes

    def check(self) -> None:
        """Raise OSError if a file isn't what was scanned."""
        for part in self.parts:
            try:
                part.check(size_only=self.elsewhere)
            except FileNotFoundError as error:
                raise OSError(f"can't read {part.name}: it has disappeared since it was scanned") from error

    def rows_of(self, recipe: Recipe) -> Rows:
        return _FileRows(self, recipe)

    def pieces(
        self, columns: Sequence[str] | None, piece_rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[MemoryTable]:
        """Yield rows ``start:stop`` as pieces of about `piece_rows` rows."""
        columns = self.columns if columns is None else columns
        stop = self.n_rows if stop is None else stop
        whole = self.in_memory()
        if whole is None:
            yield from self._read(columns, piece_rows, start, stop)
            return
        self.check()
        some = whole.select(columns)
        for low in range(start, stop, piece_rows):
            yield some[low : min(low + piece_rows, stop)]

    def in_memory(self) -> MemoryTable | None:
        """Return all rows, if they take no more than `cache_bytes` and were visited before; else None.

        Who reads rows once has nothing from their being kept; so they are kept when they are needed a second time.
        """
        with self._lock:
            if self._whole is None and not self._is_large and self.was_read:
                self._whole = self._decoded()
                self._is_large = self._whole is None
            return self._whole

    def _decoded(self) -> MemoryTable | None:
        least = self.n_rows * sum(map(_bytes, arrow_table(self.head).schema.types))
        if least > self._cache_bytes or (self._kept is not None and not self._kept.in_memory):
            return None
        wanted = list(self.columns)
        chunks: dict[str, list[Any]] = {name: [] for name in wanted}
        size = 0
        for piece in self._read(self.columns, self.piece_rows(len(self.columns)), 0, self.n_rows):
            table = arrow_table(piece)
            size += table.nbytes
            if size > self._cache_bytes:
                return None
            if table.column_names != wanted:
                table = table.select(wanted)
            # by their order: to look 100,000 names up takes seconds
            for found, column in zip(chunks.values(), table.columns, strict=True):
                found += column.chunks
        if self._kept is not None:
            self._kept.drop()
            self._kept = None
        # column by column: nothing is held twice but one of them
        joined = {name: _in_one(chunks.pop(name)) for name in self.columns}
        pa.default_memory_pool().release_unused()
        return memory_table(pa.table(joined))

    def _read(self, columns: Sequence[str], piece_rows: int, start: int, stop: int) -> Iterator[MemoryTable]:
        offset = 0
        for part in self.parts:
            low, high = max(start - offset, 0), min(stop - offset, part.n_rows)
            if low < high:
                yield from self._read_part(part, columns, piece_rows, low, high)
            offset += part.n_rows

    def _read_part(
        self, part: Part, columns: Sequence[str], piece_rows: int, low: int, high: int
    ) -> Iterator[MemoryTable]:
        """Yield the pieces of a part; what goes wrong on the way names the file."""
        seen = 0
        try:
            part.check(size_only=self.elsewhere)
            bases = list(dict.fromkeys(self._bases.get(name, name) for name in columns))
            if self._kept is not None and isinstance(part, Csv) and self._kept.failure is None:
                pieces = part.kept_pieces(self._kept, bases, low, high)
            else:
                pieces = part.pieces(bases, piece_rows, low, high)
            for piece in pieces:
                if part.lists:
                    piece = memory_table(spread(arrow_table(piece), part.lists, columns, low + seen))
                seen += piece.n_rows
                yield piece
            part.check(size_only=self.elsewhere)
        except UNREADABLE as error:
            if isinstance(error, OSError) and part.name in str(error):
                raise
            raise OSError(f"can't read {part.name}, rows {low + seen} to {high}: {error}") from error
        if seen != high - low:
            raise OSError(f"{part.name} has fewer rows than when it was scanned; scan it again")


def _in_one(chunks: list[Any]) -> Any:
    return chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks).combine_chunks()


def _bytes(kind: pa.DataType) -> float:
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # of text and the like only what is decoded tells
        return 0.0


class _FileRows(StreamRows):
    """Rows of files: a stream, until they are kept in memory."""

    def __init__(self, table: FileTable, recipe: Recipe) -> None:
        super().__init__(table, *table.settled(recipe))
        self._files, self._asked = table, recipe
        self._made: list[ArrayRows] = []

    def with_block_rows(self, block_rows: int) -> _FileRows:
        others = copy(self)
        others._recipe, others.block_rows = replace(self._recipe, block_rows=block_rows), block_rows
        return others

    def map(self, function: Callable[[Block], T]) -> Iterator[T]:
        kept = self._kept()
        yield from super().map(function) if kept is None else kept.map(function)
        self._files.was_read = True

    def total(self, statistic: Statistic[T]) -> T:
        kept = self._kept()
        return super().total(statistic) if kept is None else kept.total(statistic)

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        kept = self._kept()
        return super().take(index) if kept is None else kept.take(index)

    def _kept(self) -> ArrayRows | None:
        """Return the rows in memory, if they are small enough and the files are what they were."""
        recipe, table = self._asked, self._files
        width = len(recipe.features) + 1 + len(recipe.design.column_names) + len(recipe.design.factors)
        if not table.fits(8 * self.n_rows * width):
            return None
        whole = table.in_memory()
        if whole is None:
            return None
        table.check()
        if not self._made:
            self._made.append(whole.rows_of(recipe))
        return self._made[0].with_block_rows(self.block_rows)
