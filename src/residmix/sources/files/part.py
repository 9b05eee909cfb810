"""One file: its columns, its rows, how to read some of them, and whether it is still what was looked at."""

from __future__ import annotations

import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import narwhals.stable.v2 as nw
import numpy as np
import pyarrow as pa

from residmix.sources.array import MemoryTable
from residmix.sources.columns.lists import is_list_of_numbers, spread, widths

__all__ = ["Part", "WithSchema", "arrow_table", "cut", "distinct", "memory_table", "stamp_of"]

# Rows whose lists are looked at for their length.
LOOKED_AT = 1000

# pandas keeps its row labels in such columns; they are no measurement.
_INDEX = re.compile(r"__index_level_\d+__")
_VIEW = pa.string_view()


@dataclass(frozen=True)
class Part(ABC):
    """A file that has been looked at: a picklable description, no open handle.

    Attributes
    ----------
    path : Path
    runs : tuple of int
        Row counts of the stretches that can be read without reading what is before them; their sum is `n_rows`.
    stamp : (int, int)
        Size and time of the last change when it was looked at.
    lists : tuple of (str, int)
        Columns of lists of numbers, and how many each list has: seen as columns ``name[0]``, ``name[1]``, ...
    """

    path: Path
    runs: tuple[int, ...]
    stamp: tuple[int, int]
    lists: tuple[tuple[str, int], ...] = field(default=(), kw_only=True)

    @property
    def n_rows(self) -> int:
        return sum(self.runs)

    @property
    def name(self) -> str:
        """What messages call it."""
        return repr(str(self.path))

    @classmethod
    @abstractmethod
    def open(cls, path: Path, **options: Any) -> Part:
        """Look at the file's header."""

    def check(self, *, size_only: bool = False) -> None:
        """Raise OSError if the file isn't what was looked at; a copy elsewhere has another time, but the same size."""
        now = stamp_of(self.path)
        if now[0] != self.stamp[0] or (now != self.stamp and not size_only):
            raise OSError(f"can't read {self.name}: it has changed since it was scanned; scan it again")

    @abstractmethod
    def head(self) -> MemoryTable:
        """Return its columns as a table without rows."""

    @abstractmethod
    def pieces(self, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
        """Yield rows ``low:high`` with `columns`, about `piece_rows` at a time."""

    def runs_in(self, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Yield (run, first row, last row + 1) inside each run that overlaps ``low:high``."""
        offset = 0
        for run, count in enumerate(self.runs):
            first, last = max(low - offset, 0), min(high - offset, count)
            if first < last:
                yield run, first, last
            offset += count


@dataclass(frozen=True)
class WithSchema(Part):
    """A file of named columns."""

    schema: pa.Schema = field(repr=False)

    def head(self) -> MemoryTable:
        fields = [own for own in self.schema if not _INDEX.fullmatch(own.name)]
        return memory_table(spread(pa.schema(fields).empty_table(), self.lists))

    def with_lists(self) -> Self:
        """Return the same file, with its columns of lists found: those of numbers, of one length in the first rows."""
        if not any(map(is_list_of_numbers, self.schema.types)):
            return self
        names = [f.name for f in self.schema if is_list_of_numbers(f.type) and not _INDEX.fullmatch(f.name)]
        first = next(self.pieces(names, LOOKED_AT, 0, min(self.n_rows, LOOKED_AT)), None) if self.n_rows else None
        table = self.schema.empty_table().select(names) if first is None else arrow_table(first)
        return replace(self, lists=widths(table))


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file that can be read again and again.

    Raises
    ------
    OSError
        If it doesn't exist, or isn't a regular file (a folder, a pipe, a device).
    """
    found = os.stat(path)
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            raise OSError(
                f"{str(path)!r} is {kind}, which can't be read several times; pass a file (or - for CSV text from "
                "standard input)"
            )
    return found.st_size, found.st_mtime_ns


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def distinct(names: Sequence[str]) -> None:
    """Raise ValueError if two columns have the same name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"it has two columns named {name!r}; rename or drop one")
        seen.add(name)


def memory_table(batch: pa.RecordBatch | pa.Table) -> MemoryTable:
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    for i, kind in enumerate(table.schema.types):
        if kind == _VIEW:  # which arrow itself can't take rows of
            table = table.set_column(i, table.schema.names[i], table.column(i).cast(pa.string()))
    return MemoryTable(nw.from_native(table, eager_only=True))


def arrow_table(table: MemoryTable) -> pa.Table:
    """Return what `memory_table` was given."""
    assert not isinstance(table.X, np.ndarray)
    return table.X.to_native()


def cut(batches: Iterator[pa.RecordBatch], low: int, high: int) -> Iterator[MemoryTable]:
    """Yield rows ``low:high`` of consecutive batches."""
    offset = 0
    for batch in batches:
        if offset >= high:
            return
        first, last = max(low - offset, 0), min(high - offset, batch.num_rows)
        if first < last:
            yield memory_table(batch.slice(first, last - first))
        offset += batch.num_rows
