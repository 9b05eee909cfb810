"""Turn the user's data into a Table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np

from residmix.errors import require_extra
from residmix.rows.block import Block
from residmix.sources.array import MemoryTable
from residmix.sources.frames import is_dask, is_frame, is_path, refuse_unread, require_columns
from residmix.sources.stream import StreamTable, batch_table
from residmix.sources.table import Table

__all__ = ["as_table", "check_installed", "is_source", "scan"]


def as_table(X: Any, *, metadata: Any = None, name: str = "X") -> Table:
    """Return a view of `X`, and of separate `metadata`.

    Parameters
    ----------
    X : array (n, d), pandas/polars/pyarrow table, Table, Dask array or data frame, or batches
        Batches are a callable that returns an iterator, or an iterable: of arrays, of frames, or of pairs
        (features, metadata). An iterator that can be read once only serves `partial_fit`.
    metadata : array (n,) or (n, p), frame or series, or Table, optional
        Numbers stay an array; other arrays become a frame with columns m0, m1, ... A Table is read into memory.
    name : str
        What messages call `X`.

    Raises
    ------
    TypeError, ValueError
        For sparse matrices, wrong shapes, no rows, other lengths, or data of no kind we know.
    """
    refuse_unread(X, name)
    refuse_unread(metadata, "metadata")
    if isinstance(metadata, Table):
        metadata = _gathered(metadata)
    if isinstance(X, Table):
        return X if metadata is None else _beside(X, metadata)
    if is_dask(X) or is_dask(metadata):
        from residmix.sources.collection import collection_table

        return collection_table(X, metadata)
    if not is_frame(X) and (callable(X) or _is_batches(X)):
        if metadata is not None:
            raise TypeError("metadata= doesn't work with batches; yield pairs (features, metadata)")
        return batch_table(X)
    return MemoryTable.make(X, metadata, name)


def _beside(table: Table, metadata: Any) -> Table:
    if table.has_metadata:
        raise ValueError("this table already has metadata; leave metadata= out")
    if isinstance(table, MemoryTable):
        return table.with_metadata(metadata)
    if isinstance(table, StreamTable):
        return table.with_metadata(metadata)
    raise TypeError(f"metadata= doesn't work with a {type(table).__name__}; join the columns into one table")


def is_source(data: Any) -> bool:
    """Tell whether `data` is read, or refused, by us alone: a Table, a Dask collection, a callable, a path."""
    known = isinstance(data, Table) or is_dask(data) or is_path(data)
    return known or (callable(data) and not hasattr(data, "__array__"))


def _gathered(table: Table) -> Any:
    """Return a table of metadata as one array or frame in memory."""
    if table.has_metadata:
        raise ValueError("metadata= is a table that has metadata of its own; pass a table of the metadata alone")
    if not table.named:
        return np.concatenate(list(table.rows(allow_nan=True).map(_features)))
    return nw.concat([nw.from_native(chunk, eager_only=True) for chunk in table.chunks(table.columns)]).to_native()


def _features(block: Block) -> Any:
    return block.X.copy()


def _is_batches(X: Any) -> bool:
    """Tell whether `X` is an iterable of batches rather than one array-like."""
    if hasattr(X, "__array__") or hasattr(X, "__array_interface__") or hasattr(X, "__len__"):
        first = X[0] if isinstance(X, (list, tuple)) and X else None
        return isinstance(first, tuple) and len(first) == 2 and hasattr(first[0], "shape")
    return isinstance(X, Iterable)


def scan(
    path_or_glob: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int | None = None,
    cache_bytes: int = 100_000_000,
    sep: str | None = None,
    decimal: str = ".",
    thousands: str | None = None,
    na_values: str | Sequence[str] = (),
    client: Any = None,
) -> Table:
    """Return a table over files, which every estimator accepts instead of an array or a data frame.

    Only headers are read now (CSV text is parsed once, to count its rows and find its types). A fit then reads the
    files once for each of its passes, a batch of rows at a time and only the needed columns, so that memory holds a few
    batches. A small table is decoded once and kept in memory. Results are bitwise equal to those of the same rows in
    memory.

    Parameters
    ----------
    path_or_glob : path, glob pattern, folder, or list of paths
        ``.parquet``, ``.arrow`` / ``.feather`` / ``.ipc``, ``.csv`` / ``.tsv`` (also ``.csv.gz``), or ``.npy``. Files
        of one table must have the same columns; they are read in the order of their sorted paths, or of the list. A
        folder is searched with its subfolders. ``"-"`` is CSV text from standard input. A column of equally long lists
        of numbers, such as an embedding, becomes the columns ``name[0]``, ``name[1]``, ...
    columns : sequence of str, optional
        The columns to use. Default: all. Those of array files are called x0, x1, ...
    batch_rows : int, optional
        Rows read at a time. Default: about 4 MB of them.
    cache_bytes : int
        If all decoded data take no more than this, they are kept in memory with the table, as is the matrix that a fit
        makes of them. Larger CSV data are kept as numbers in an unnamed temporary file, so that text isn't parsed
        again.
    sep : str, optional
        Column separator of CSV text. Default: a comma, or a tab in ``.tsv`` files.
    decimal, thousands : str
        Decimal point and thousands separator in CSV text: ``3.272,3`` has ``decimal=","`` and ``thousands="."``.
        Default: a point, and no thousands separator.
    na_values : str or sequence of str
        Texts that mean a missing value in CSV text, in addition to the usual ones (empty, NA, NaN, null, ...).
    client : distributed.Client, optional
        Let the workers of this Dask cluster read the files, which must have the same paths there. An existing client
        isn't used unless it is passed, since its workers may not see local files.

    Raises
    ------
    FileNotFoundError
        If no file matches.
    ValueError
        If files differ in their columns or have no rows. The message names the file and the column.
    OSError
        If a file can't be read, or has changed since it was scanned. The message names it.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib, residmix as rm
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "x.npy", np.eye(4))
    >>> table = rm.scan(folder / "x.npy")
    >>> table.n_rows, table.columns
    (4, ('x0', 'x1', 'x2', 'x3'))

    Numbers as written in much of Europe, with a code for values below a detection limit:

    >>> text = "site;iron;volume\\nA;<LOD;3.272,3\\nB;0,25;981\\n"
    >>> _ = (folder / "x.csv").write_text(text)
    >>> table = rm.scan(folder / "x.csv", sep=";", decimal=",", thousands=".", na_values="<LOD")
    >>> table.numeric_columns
    ('iron', 'volume')
    """
    # the readers of files load pyarrow, which rows in memory don't need
    from residmix.sources.files.csv import Csv, TextOptions
    from residmix.sources.files.formats import in_common, open_parts
    from residmix.sources.files.kept import Kept
    from residmix.sources.files.npy import Npy
    from residmix.sources.files.table import FileTable, find_files

    if cache_bytes < 0:
        raise ValueError(f"cache_bytes must not be negative; got {cache_bytes}")
    text = TextOptions(sep, decimal, thousands, (na_values,) if isinstance(na_values, str) else tuple(na_values))
    paths = find_files(path_or_glob)
    kept = Kept(cache_bytes) if client is None else None
    parts = in_common(open_parts(paths, text=text, kept=kept))
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        names = ", ".join(sorted({part.path.suffix for part in parts}))
        raise ValueError(
            f"{path_or_glob} matches files of several kinds ({names}); use a glob pattern that matches one"
        )
    is_text = isinstance(parts[0], Csv)
    if text != TextOptions() and not is_text:
        raise ValueError(
            f"sep, decimal, thousands and na_values are for CSV text, but {parts[0].name} isn't; leave them out"
        )
    if is_text and client is not None and str(paths[0]) == "-":
        raise ValueError("workers of a cluster can't read standard input; pass a file that they can read")
    head = parts[0].head()
    if columns is not None:
        require_columns(columns, head.columns, str(parts[0].path))
        head = head.select(columns)
    for part in parts[1:]:
        _same_columns(head, part.head(), parts[0].path, part.path)
    if client is None and len(parts) == 1 and isinstance(parts[0], Npy):
        return MemoryTable.make(parts[0].matrix()).select(head.columns)
    table = FileTable(tuple(parts), head, batch_rows, cache_bytes=cache_bytes, kept=kept if is_text else None)
    if client is None:
        return table
    from residmix.sources.dask import ClusterFiles

    check_installed()
    return ClusterFiles(table, client)


def _same_columns(head: MemoryTable, other: MemoryTable, first: Path, path: Path) -> None:
    """Refuse a file that lacks a column of the first one, or holds another type in it."""
    there = set(other.columns)
    for name in head.columns:
        if name not in there:
            raise ValueError(
                f"{str(path)!r} has no column {name!r}, but {str(first)!r} has; make the columns equal, or use columns="
            )
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


def check_installed() -> None:
    """Raise if Dask's cluster can't be used."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise require_extra("distributed", "dask", "working on a Dask cluster") from error
