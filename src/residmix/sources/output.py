"""Results of rows: collected into one array, or written to a Parquet file block by block."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from residmix.atomic import atomic_path
from residmix.rows.block import Block
from residmix.rows.progress import RowProgress, watched
from residmix.rows.rows import Rows

__all__ = ["collect", "delivered", "write_parquet"]

_GROUP_BYTES = 1 << 25  # of a row group that we write


def collect(rows: Rows, function: Callable[[Block], NDArray[Any]], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return ``function(block)`` of all blocks as one array.

    Parameters
    ----------
    rows : Rows
    function : callable
        Returns an array (b,) or (b, m) for a block of b rows.
    out : ndarray, optional
        Where to put them, also in place of the very rows; it must be C-contiguous. Default: a new array.

    Returns
    -------
    ndarray (n,) or (n, m)
        Filled block by block, so that nothing is held twice.
    """
    if rows.local:
        placed = _Placed(rows.n_rows, function, out)
        rows.fold(placed, lambda one, two: None)
        return placed.out
    start = 0
    for result in rows.map(function):
        if out is None:
            out = np.empty((rows.n_rows, *result.shape[1:]), result.dtype)
        out[start : start + len(result)] = result
        start += len(result)
    assert out is not None
    return out


def delivered(
    rows: Rows,
    function: Callable[[Block], NDArray[Any]],
    names: Iterable[Any],
    out: str | os.PathLike[str] | NDArray[Any] | None = None,
    *,
    dtype: DTypeLike | None = None,
    flat: bool = False,
) -> NDArray[Any] | Path:
    """Return ``function(block)`` of all blocks as one array (`out`, if it is one), or the path of the file `out`.

    How far it has come shows in a line of progress.

    Parameters
    ----------
    rows : Rows
    function : callable
        Returns an array (b, m) for a block of b rows.
    names : iterable
        The m column names of a file.
    out : path or ndarray, optional
    dtype : dtype, optional
        Of the results. Default: that of the rows.
    flat : bool
        Whether results are (b,), one number a row.

    Raises
    ------
    ValueError
        If `out` is an array of another shape, dtype or memory order than the results.
    """
    if out is None or isinstance(out, np.ndarray):
        shape = (rows.n_rows,) if flat else (rows.n_rows, len([*names]))
        dtype = rows.dtype if dtype is None else np.dtype(dtype)
        if out is not None and not (
            out.shape == shape and out.dtype == dtype and out.flags.c_contiguous and out.flags.writeable
        ):
            order = "" if out.flags.c_contiguous and out.flags.writeable else ", in another memory order or read-only"
            raise ValueError(
                f"out must be a writeable, C-contiguous array of shape {shape} and dtype "
                f"{dtype}; got shape {out.shape} and dtype {out.dtype}{order}"
            )
        _refuse_overlap(rows, out)
        with watched(rows) as seen:
            return collect(seen, function, out)
    return write_parquet(rows, function, [*map(str, names)], out)


def _refuse_overlap(rows: Rows, out: NDArray[Any] | None) -> None:
    """Raise if writing `out` would change rows that are read later: it must be X itself or lie elsewhere."""
    X = rows.held
    if out is None or X is None:
        return
    itself = X.ctypes.data == out.ctypes.data and X.strides == out.strides and X.shape == out.shape
    if not itself and np.may_share_memory(X, out):
        raise ValueError(
            "out overlaps X but isn't the same array, so rows would be overwritten before they are "
            "read; copy one of them"
        )


class _Placed:
    """Puts the result of a block where it belongs, in the thread that computed it."""

    out: NDArray[Any]

    def __init__(self, n_rows: int, function: Callable[[Block], NDArray[Any]], out: NDArray[Any] | None) -> None:
        self._n_rows, self._function = n_rows, function
        self._lock, self._ready = threading.Lock(), out is not None
        if out is not None:
            self.out = out

    def __call__(self, block: Block) -> None:
        into = getattr(self._function, "into", None)
        if into is not None:  # it writes where it's told: nothing is held twice, not even a block
            self._make(block.X.shape[1:], block.X.dtype)
            into(block, self.out[block.start : block.start + block.n_rows])
            return
        result = self._function(block)
        self._make(result.shape[1:], result.dtype)
        self.out[block.start : block.start + len(result)] = result

    def _make(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        with self._lock:
            if not self._ready:
                self.out = np.empty((self._n_rows, *shape), dtype)
                self._ready = True


def write_parquet(
    rows: Rows, function: Callable[[Block], NDArray[Any]], names: Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Write ``function(block)`` of all blocks to a Parquet file while they are computed.

    The file appears under its name when it is whole: until then it has a temporary one.

    Parameters
    ----------
    rows : Rows
    function : callable
        Returns an array (b,) or (b, m) for a block of b rows.
    names : sequence of str
        The m column names.
    path : path

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If `path` doesn't end in ``.parquet``, or it is a file that is read.
    FileNotFoundError
        If the folder doesn't exist.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    if not os.fspath(path).endswith((".parquet", ".pq")):
        raise ValueError(f"the output {os.fspath(path)!r} must end in .parquet")
    if os.path.exists(path) and any(os.path.samefile(path, source) for source in rows.paths):
        raise ValueError(f"the output {os.fspath(path)!r} is one of the input files; use another name")
    n_bytes = rows.n_rows * len(names) * rows.dtype.itemsize
    with RowProgress(rows.n_rows) as progress, atomic_path(path, n_bytes) as temporary:
        writer: ParquetWriter | None = None
        try:
            for columns in _grouped(rows.map(function)):
                table = pa.table(dict(zip(names, columns, strict=True)))
                # a dictionary of numbers that are all different is work for nothing
                writer = writer or ParquetWriter(temporary, table.schema, use_dictionary=False)
                writer.write_table(table)
                progress(len(table))  # rows that were computed ahead aren't done
        finally:
            if writer is not None:
                writer.close()
    return Path(path)


def _grouped(results: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield the columns of results that make a row group each, as rows of a matrix that the next group overwrites.

    One matrix holds them all: joined and cut into columns by copies, a group would be in memory three times.
    """
    held, n_rows = np.empty((0, 0)), 0
    for result in results:
        matrix = result.reshape(len(result), -1)
        stop = n_rows + len(matrix)
        if stop > held.shape[1]:
            whole = -(-_GROUP_BYTES // max(1, matrix.shape[1] * matrix.itemsize)) + len(matrix)
            wider = np.empty((matrix.shape[1], max(stop, whole)), matrix.dtype)
            if n_rows:
                wider[:, :n_rows] = held[:, :n_rows]
            held = wider
        held[:, n_rows:stop] = matrix.T
        n_rows = stop
        if held[:, :n_rows].nbytes >= _GROUP_BYTES:
            yield held[:, :n_rows]
            n_rows = 0
    if n_rows:
        yield held[:, :n_rows]
