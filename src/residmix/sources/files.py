"""Files as tables: Parquet, Arrow, CSV and .npy, one or many, read a batch at a time."""

from __future__ import annotations

import glob
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from residmix.sources.array import MemoryTable
from residmix.sources.formats import FORMATS, Part, readable
from residmix.sources.stream import StreamTable

__all__ = ["FileTable"]


def find_files(where: Any) -> list[Path]:
    """Return the files that a path, a glob pattern, a folder or a list of them stands for.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if isinstance(where, (list, tuple)):
        return [path for item in where for path in find_files(item)]
    text = os.fspath(where)
    if os.path.isdir(text):
        found = [path for path in sorted(Path(text).rglob("*")) if readable(path)]
        if not found:
            raise FileNotFoundError(f"folder {text!r} has no file that ends in {', '.join(FORMATS)}")
        return found
    if os.path.exists(text):
        return [Path(text)]
    found = [Path(path) for path in sorted(glob.glob(text, recursive=True)) if os.path.isfile(path)]
    if not found:
        raise FileNotFoundError(f"no file matches {text!r}")
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
    """

    def __init__(self, parts: tuple[Part, ...], head: MemoryTable, batch_rows: int | None = None) -> None:
        n_rows = sum(part.n_rows for part in parts)
        if n_rows == 0:
            more = f" and the {len(parts) - 1} other files have" if len(parts) > 1 else " has"
            raise ValueError(f"{str(parts[0].path)!r}{more} no rows")
        super().__init__(head, n_rows, batch_rows)
        self.parts, self.paths = parts, tuple(part.path for part in parts)

    def covering(self, start: int, stop: int) -> tuple[FileTable, int]:
        """Return the table of just the files that hold rows ``start:stop``, and how many rows are before them."""
        offsets = [0, *accumulate(part.n_rows for part in self.parts)]
        first = bisect_right(offsets, start) - 1
        last = bisect_left(offsets, stop)
        return FileTable(self.parts[first:last], self.head, self.batch_rows), offsets[first]

    def pieces(
        self, columns: Sequence[str] | None, piece_rows: int, start: int = 0, stop: int | None = None
    ) -> Iterator[MemoryTable]:
        """Yield rows ``start:stop`` as pieces of about `piece_rows` rows."""
        columns = self.columns if columns is None else columns
        stop = self.n_rows if stop is None else stop
        offset = 0
        for part in self.parts:
            low, high = max(start - offset, 0), min(stop - offset, part.n_rows)
            if low < high:
                yield from _checked(part, columns, piece_rows, low, high)
            offset += part.n_rows


def _checked(part: Part, columns: Sequence[str], piece_rows: int, low: int, high: int) -> Iterator[MemoryTable]:
    """Yield the pieces of a part; what goes wrong on the way names the file."""
    seen = 0
    try:
        for piece in part.pieces(columns, piece_rows, low, high):
            seen += piece.n_rows
            yield piece
    except (OSError, pa.ArrowException, KeyError) as error:
        raise OSError(f"can't read {str(part.path)!r}, rows {low + seen} to {high}: {error}") from error
    if seen != high - low:
        raise OSError(f"{str(part.path)!r} has fewer rows than when it was scanned; scan it again")
