"""Files as tables: Parquet, Arrow, CSV and .npy, one or many, read a batch at a time."""

from __future__ import annotations

import glob
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pyarrow as pa

from residmix.sources.array import MemoryTable
from residmix.sources.formats import FORMATS, Npy, Part, one_schema, open_part, readable
from residmix.sources.frames import require_columns
from residmix.sources.stream import StreamTable
from residmix.sources.table import Table

__all__ = ["FileTable", "scan"]


def scan(
    path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int | None = None,
    client: Any = None,
) -> Table:
    """Return a table over files, which every estimator takes in place of an array or a frame.

    Only headers are read now (a CSV file is read once, to count its rows and settle its types). A fit then reads
    the files once for each pass that it makes, a batch of rows at a time and only the columns that it needs; memory
    holds a few batches, never a file. The answer is the same, to the last bit, as that of the same rows in memory.

    Parameters
    ----------
    path_or_glob : path, glob pattern, folder, or list of paths
        ``.parquet``, ``.arrow`` / ``.feather`` / ``.ipc``, ``.csv`` / ``.tsv``, or ``.npy``. Files of one table are
        read in the order of their sorted paths (a list: in its order) and must have the same columns; a folder is
        searched with its subfolders.
    columns : sequence of str, optional
        The columns to see. Default: all. Array files call theirs x0, x1, ...
    batch_rows : int, optional
        Rows read at a time. Default: about 4 MB of them.
    client : distributed.Client, optional
        Let the workers of a Dask cluster read the files, which they must reach by the same paths. A client that
        merely exists isn't used: workers elsewhere can't be expected to see local files.

    Raises
    ------
    FileNotFoundError
        If no file matches.
    ValueError
        If files differ in their columns, naming the file and the column, or have no rows.
    OSError
        If a file can't be read, naming it.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib, residmix as rm
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "x.npy", np.eye(4))
    >>> table = rm.scan(folder / "x.npy")
    >>> table.n_rows, table.columns
    (4, ('x0', 'x1', 'x2', 'x3'))
    """
    parts = one_schema([open_part(path) for path in find_files(path_or_glob)])
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        names = ", ".join(sorted({part.path.suffix for part in parts}))
        raise ValueError(f"{path_or_glob} matches files of several kinds ({names}); narrow it with a glob pattern")
    head = parts[0].head()
    if columns is not None:
        require_columns(columns, head.columns, str(parts[0].path))
        head = head.select(columns)
    for part in parts[1:]:
        _same_columns(head, part.head(), parts[0].path, part.path)
    if client is None and len(parts) == 1 and isinstance(parts[0], Npy):
        return MemoryTable.make(parts[0].matrix()).select(head.columns)
    table = FileTable(tuple(parts), head, batch_rows)
    if client is None:
        return table
    from residmix.sources.dask import ClusterFiles, check_installed

    check_installed()
    return ClusterFiles(table, client)


def _same_columns(head: MemoryTable, other: MemoryTable, first: Path, path: Path) -> None:
    """Refuse a file that lacks a column of the first one, or holds another type in it."""
    for name in head.columns:
        if name not in other.columns:
            raise ValueError(f"{str(path)!r} has no column {name!r}, which {str(first)!r} has")
    if isinstance(head.X, np.ndarray) or isinstance(other.X, np.ndarray):
        return
    for name in head.columns:
        types = [_plain(frame.schema[name]) for frame in (head.X, other.X)]
        if types[0] != types[1]:
            raise ValueError(
                f"column {name!r} holds {types[1]} in {str(path)!r} but {types[0]} in {str(first)!r}; "
                "write them with one type"
            )


def _plain(dtype: Any) -> Any:
    """Return the type that values have, however they are encoded."""
    return nw.String() if dtype == nw.Categorical else dtype


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
