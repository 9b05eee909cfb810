"""Columns of lists of numbers, such as embeddings, expanded to several columns of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, types

__all__ = ["is_list_of_numbers", "list_names", "spread", "spread_frame", "widths"]


def is_list_of_numbers(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds lists of numbers."""
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))


def widths(table: pa.Table) -> tuple[tuple[str, int], ...]:
    """Return the columns whose lists are all of one length, and that length; a missing list has none."""
    found = []
    for name in table.column_names:
        column = table.column(name)
        if is_list_of_numbers(column.type):
            if types.is_fixed_size_list(column.type):
                lengths = [column.type.list_size]
            else:
                lengths = compute.unique(compute.list_value_length(column).drop_null()).to_pylist()
            if len(lengths) == 1 and lengths[0] > 0:
                found.append((name, lengths[0]))
    return tuple(found)


def list_names(name: str, width: int) -> list[str]:
    """Return what the columns of a list are called: ``name[0]``, ``name[1]``, ..."""
    return [f"{name}[{j}]" for j in range(width)]


def spread(
    table: pa.Table, lists: Iterable[tuple[str, int]], wanted: Sequence[str] | None = None, start: int = 0
) -> pa.Table:
    """Return a table in which columns of lists are expanded to columns of numbers.

    Parameters
    ----------
    table : pyarrow.Table
    lists : iterable of (str, int)
        Columns, and how many numbers each of their lists has.
    wanted : sequence of str, optional
        The columns to return, in order. Default: all.
    start : int
        Which row of the whole the first one is, for messages.

    Raises
    ------
    ValueError
        If a list has another length, naming its row.
    """
    width_of = {name: width for name, width in lists if name in table.column_names}
    if not width_of and wanted is None:
        return table
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name in width_of:
            matrix = _matrix(table.column(name), name, width_of[name], start)
            columns |= {each: pa.array(row) for each, row in zip(list_names(name, width_of[name]), matrix, strict=True)}
        else:
            columns[name] = table.column(name)
    return pa.table(columns if wanted is None else {name: columns[name] for name in wanted})


def _matrix(column: pa.ChunkedArray, name: str, width: int, start: int) -> NDArray[Any]:
    """Return the numbers of a column of lists, one row for each place in a list; NaN where a list is missing."""
    lists = column.combine_chunks()
    lengths = compute.list_value_length(lists)
    odd = compute.index(compute.fill_null(compute.not_equal(lengths, width), False), True).as_py()
    if odd >= 0:
        raise ValueError(
            f"column {name!r} has a list of {lengths[odd].as_py()} numbers in row {start + odd}, but lists of "
            f"{width} in the first rows; make all lists equally long, or leave the column out (columns=)"
        )
    kind = np.float32 if types.is_float32(lists.type.value_type) else np.float64
    flat = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), kind).reshape(-1, width)
    if lists.null_count:
        whole = np.full((len(lists), width), np.nan, kind)
        whole[np.asarray(lists.is_valid().to_numpy(zero_copy_only=False), bool)] = flat
        flat = whole
    return np.ascontiguousarray(flat.T)


def spread_frame(frame: nw.DataFrame[Any]) -> nw.DataFrame[Any]:
    """Return a frame in which columns of lists of one length are expanded to columns of numbers."""
    columns: dict[str, pa.Table] = {}
    for name, kind in frame.schema.items():
        if kind in (nw.List, nw.Array, nw.Object):
            table = _lists(frame.get_column(name))
            found = () if table is None else widths(table)
            if found:
                columns[name] = spread(table, found)
    if not columns:
        return frame
    order: list[str] = []
    made = []
    for name in frame.columns:
        table = columns.get(name)
        if table is None:
            order.append(name)
            continue
        order += table.column_names
        for each in table.column_names:
            values = table.column(each).to_numpy()
            made.append(nw.new_series(each, values, backend=frame.implementation))
    return frame.with_columns(*made).select(order)


def _lists(series: nw.Series[Any]) -> pa.Table | None:
    """Return a column as Arrow's lists, or None if it holds something else."""
    if series.dtype == nw.Object:
        first = next((value for value in series if value is not None), None)
        if not isinstance(first, (list, tuple, np.ndarray)):
            return None
    try:
        return pa.table({series.name: series.to_arrow()})
    except (pa.ArrowException, TypeError, ValueError):
        return None
