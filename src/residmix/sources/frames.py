"""Data frames of any kind (pandas, polars, pyarrow), seen through narwhals: names, kinds, one float matrix."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray

from residmix.design.columns import float_values
from residmix.errors import did_you_mean
from residmix.sources.columns.blocks import column_kinds, wide_blocks

__all__ = [
    "as_frame",
    "fill_rows",
    "frame_of_strings",
    "has_names",
    "is_dask",
    "is_frame",
    "is_path",
    "numeric_columns",
    "numeric_matrix",
    "numeric_names",
    "objects_that_are_numbers",
    "pandas_view",
    "refuse_other_order",
    "refuse_unread",
    "require_columns",
    "row_labels",
    "unmasked",
]

_FILL_ROWS = 4096  # rows filled at a time across all columns: the target stays in cache


def is_frame(data: Any) -> bool:
    """Tell whether `data` is a data frame or series of a library we read, without importing any of them."""
    if isinstance(data, np.ndarray):  # which takes long to be told from a frame
        return False
    known = nw.dependencies
    return known.is_into_dataframe(data) or known.is_into_series(data) or known.is_polars_lazyframe(data)


def has_names(data: Any) -> bool:
    """Tell whether the columns of a frame have names: a pandas frame labelled by numbers only is a plain array."""
    if not nw.dependencies.is_pandas_dataframe(data) or len(data.columns) == 0:
        return True
    return any(isinstance(label, str) for label in data.columns)


def as_frame(data: Any, name: str) -> nw.DataFrame[Any]:
    """Return `data` as a narwhals frame whose column names are distinct strings.

    Raises
    ------
    TypeError
        If column names aren't strings, or the frame is lazy.
    ValueError
        If two columns share a name.
    """
    if nw.dependencies.is_polars_lazyframe(data):
        raise TypeError(f"{name} is a lazy frame; call .collect() on it, or read the files with residmix.scan")
    if nw.dependencies.is_into_series(data):
        series = nw.from_native(data, series_only=True)
        data = (series if series.name else series.alias("m0")).to_frame().to_native()
    labels = list(getattr(data, "columns", ())) if not _is_arrow(data) else data.column_names
    odd = [label for label in labels if not isinstance(label, str)]
    if odd:
        raise TypeError(
            f"the column names of {name} must all be strings; got {odd[0]!r} of type {type(odd[0]).__name__}. Rename "
            "them, or pass a plain array"
        )
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise ValueError(f"{name} has two columns named {label!r}; rename or drop one")
        seen.add(label)
    return nw.from_native(_ordinary_numbers(data), eager_only=True)


def _ordinary_numbers(data: Any) -> Any:
    """Return a frame whose numbers are in the byte order of the machine and of a size that every library knows."""
    if not nw.dependencies.is_pandas_dataframe(data):
        return data
    ordinary = {
        dtype: np.float64 if dtype == np.longdouble else dtype.newbyteorder("=")
        for dtype in set(data.dtypes)
        if isinstance(dtype, np.dtype) and (not dtype.isnative or (dtype == np.longdouble and dtype != np.float64))
    }
    if not ordinary:
        return data
    return data.astype({name: ordinary[dtype] for name, dtype in data.dtypes.items() if dtype in ordinary})


def refuse_other_order(X: Any, other: Any, name: str) -> None:
    """Raise if two pandas objects have rows of the same labels in another order, or share only some of their labels.

    Rows are matched by position. A default index, or labels of which none are shared, are ignored.

    Raises
    ------
    ValueError
        With a row that differs, and how to bring them in order.
    """
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return
    kinds = (pandas.DataFrame, pandas.Series)
    if not (isinstance(X, kinds) and isinstance(other, kinds) and len(X) == len(other)):
        return
    one, two = X.index, other.index
    if one is two or one.equals(two):
        return
    shared = one.isin(two)
    unset = [
        isinstance(index, pandas.RangeIndex) and index.equals(pandas.RangeIndex(len(index))) for index in (one, two)
    ]
    if (shared.all() and two.isin(one).all()) or (shared.any() and not any(unset)):
        row = next((i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a is not b and a != b), 0)
        raise ValueError(
            f"X and {name} have different indexes: row {row} is {one[row]!r} in X and {two[row]!r} in {name}. Rows "
            f"are matched by position: bring them into the same order ({name}.loc[X.index]), or drop a meaningless "
            "index (.reset_index(drop=True))"
        )


def unmasked(values: Any) -> Any:
    """Return a masked array as one with NaN (or None) where it is masked, and anything else as it is."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if not np.ma.is_masked(values):
        return values.data
    gap: Any = np.nan if values.dtype.kind in "fiub" else None
    return np.where(np.ma.getmaskarray(values), gap, values.data)


def _is_arrow(data: Any) -> bool:
    arrow = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(data, arrow.Table)


def frame_of_strings(values: NDArray[Any]) -> nw.DataFrame[Any]:
    """Return an array (n, p) that isn't numeric as a frame with columns m0, m1, ...; number-like ones as numbers."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for j in range(values.shape[1]):
        column = values[:, j]
        if column.dtype == object:
            # NaN among texts is how numpy users write "missing".
            cells = [None if cell is None or cell != cell else cell for cell in column]
            try:
                columns[f"m{j}"] = pa.array(cells)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                columns[f"m{j}"] = pa.array([None if cell is None else str(cell) for cell in cells])
        else:
            columns[f"m{j}"] = pa.array(column)
    return nw.from_native(pa.table(columns), eager_only=True)


def row_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return which columns are row names or numbers that were written along: R and pandas leave their heading empty."""
    return tuple(name for name in names if name in ("", "Unnamed: 0"))


def numeric_names(frame: nw.DataFrame[Any]) -> tuple[str, ...]:
    """Return the names of columns that hold numbers; truth values don't count."""
    return tuple(name for name, dtype in column_kinds(frame).items() if dtype.is_numeric())


def objects_that_are_numbers(frame: nw.DataFrame[Any], names: Sequence[str]) -> list[str]:
    """Return which pandas columns hold numbers as Python objects or sparsely, so that they don't count as numeric."""
    kinds = column_kinds(frame)
    odd = [name for name in names if kinds[name] in (nw.Object, nw.Unknown)]
    native = frame.to_native()
    if not odd or not nw.dependencies.is_pandas_dataframe(native):
        return []
    import pandas as pd
    from pandas.api.types import infer_dtype

    numbers = ("integer", "floating", "mixed-integer-float", "decimal", "integer-na")
    return [
        name
        for name in odd
        if isinstance(native[name].dtype, pd.SparseDtype) or infer_dtype(native[name], skipna=True) in numbers
    ]


def require_columns(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise if a name isn't among the known ones.

    Raises
    ------
    ValueError
        With the closest known name.
    """
    there = set(known)  # looking through a sequence would take the square of the number of columns
    for name in names:
        if name not in there:
            hint = did_you_mean(name, known) or f"; there are: {', '.join(map(str, list(known)[:12]))}"
            raise ValueError(f"unknown column {name!r} in {where}{hint}")


def numeric_matrix(frame: nw.DataFrame[Any], names: Sequence[str], where: str = "X") -> NDArray[Any]:
    """Return columns as one matrix (n, d): float32 if all of them are, else float64; missing values become NaN.

    One block of floats in the caller's frame is handed out as a view; otherwise the matrix is the only copy made.

    Raises
    ------
    ValueError
        If a column isn't numeric, naming it.
    """
    view = pandas_view(frame, names)
    if view is not None:
        return view
    blocks = wide_blocks(frame, names)
    if blocks is not None:
        return blocks.matrix(len(frame))
    columns = numeric_columns(frame, names, where)
    dtype = np.float32 if columns and all(c.dtype == np.float32 for c in columns) else np.float64
    if len(columns) == 1 and columns[0].dtype == dtype:
        return columns[0].reshape(-1, 1)
    matrix = np.empty((len(frame), len(columns)), dtype=dtype)
    fill_rows(matrix, columns)
    return matrix


def fill_rows(matrix: NDArray[Any], columns: Sequence[NDArray[Any]]) -> None:
    """Write columns into the rows of a matrix."""
    for start in range(0, len(matrix), _FILL_ROWS):
        rows = slice(start, start + _FILL_ROWS)
        for j, column in enumerate(columns):
            matrix[rows, j] = column[rows]


def numeric_columns(frame: nw.DataFrame[Any], names: Sequence[str], where: str = "X") -> list[NDArray[Any]]:
    """Return columns as arrays (n,) of float32 or float64; missing values become NaN.

    Raises
    ------
    ValueError
        If a column isn't numeric, naming it.
    """
    native = frame.to_native()
    blocks = wide_blocks(frame, names)
    if blocks is not None:
        return [column for block in blocks for column in block.T]
    # what a batch of a file is: asked directly, a column costs a tenth of what it costs through narwhals
    plain = {name: _arrow_floats(native, name) for name in names} if _is_arrow(native) else {}
    columns = (plain.get(name) for name in names)
    return [_values(frame[name], where) if c is None else c for name, c in zip(names, columns, strict=True)]


def _arrow_floats(table: Any, name: str) -> NDArray[Any] | None:
    """Return a column of a pyarrow table that holds floats in one piece, without gaps, as a view; else None."""
    column = table.column(name)
    if column.num_chunks != 1 or column.null_count or str(column.type) not in ("double", "float"):
        return None
    return np.asarray(column.chunk(0).to_numpy())


def pandas_view(frame: nw.DataFrame[Any], names: Sequence[str]) -> NDArray[Any] | None:
    """Return all columns of a pandas frame as the one block of floats in which it holds them, if it does; else None."""
    native = frame.to_native()
    if not nw.dependencies.is_pandas_dataframe(native) or tuple(native.columns) != tuple(names):
        return None
    kinds = set(native.dtypes)
    if len(kinds) != 1 or next(iter(kinds)) not in (np.dtype(np.float32), np.dtype(np.float64)):
        return None
    matrix = native.to_numpy()
    return matrix if len(matrix) == 0 or np.shares_memory(matrix, native.iloc[:, 0].to_numpy()) else None


def _values(series: nw.Series[Any], where: str) -> NDArray[Any]:
    dtype = series.dtype
    if dtype not in (nw.Float32, nw.Float64):
        if not (dtype.is_numeric() or dtype == nw.Boolean):
            kind = getattr(series.to_native(), "dtype", dtype) if dtype == nw.Unknown else dtype
            objects = ", convert it to numbers (pandas: .astype(float))" if dtype in (nw.Object, nw.Unknown) else ""
            raise ValueError(
                f"column {series.name!r} of {where} doesn't hold numbers ({kind}); leave it out of the "
                f"features{objects}, or use it in the formula"
            )
        return float_values(series)
    values = np.asarray(series.to_numpy())
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def is_dask(data: Any) -> bool:
    """Tell whether `data` is a Dask collection, without importing Dask."""
    return "dask" in sys.modules and hasattr(data, "__dask_graph__") and hasattr(data, "dask")


def is_path(data: Any) -> bool:
    """Tell whether `data` names a file rather than holding rows."""
    return isinstance(data, (str, bytes, os.PathLike))


def refuse_unread(data: Any, name: str) -> None:
    """Refuse what must be opened first: a path, or an AnnData object."""
    if is_path(data):
        raise TypeError(f"{name} is a path; read it with residmix.scan({os.fspath(data)!r})")
    if type(data).__name__ == "AnnData":
        raise TypeError(f"{name} is an AnnData object; read it with residmix.anndata.from_anndata(adata, formula)")
