"""Wide frames: their columns many at a time, since to ask for 100,000 one by one takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDE", "Blocks", "column_kinds", "wide_blocks"]

WIDE = 1024  # columns that are read at a time; fewer are read one by one

_PLAIN = set(map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")))
_PLAIN_POLARS = {
    nw.Int8,
    nw.Int16,
    nw.Int32,
    nw.Int64,
    nw.UInt8,
    nw.UInt16,
    nw.UInt32,
    nw.UInt64,
    nw.Float32,
    nw.Float64,
}


class Blocks:
    """Matrices (n, b) that side by side are the columns.

    Parameters
    ----------
    of : callable
        ``of(low, high)``, columns ``low`` to ``high``.
    n_columns : int
    dtype : dtype
        Of all of them.
    width : int
        Columns in a block.
    """

    def __init__(
        self, of: Callable[[int, int], NDArray[Any]], n_columns: int, dtype: np.dtype[Any], width: int = WIDE
    ) -> None:
        self._of, self._n_columns, self.dtype, self._width = of, n_columns, dtype, width

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for low in range(0, self._n_columns, self._width):
            yield self._of(low, min(low + self._width, self._n_columns))

    def matrix(self, n_rows: int) -> NDArray[Any]:
        """Return all of them as one matrix, the only copy that is made of more than a block."""
        if self._n_columns <= self._width:
            return next(iter(self))
        start, whole = 0, np.empty((n_rows, self._n_columns), self.dtype)
        for block in self:
            whole[:, start : start + block.shape[1]] = block
            start += block.shape[1]
        return whole


def wide_blocks(frame: nw.DataFrame[Any], names: Sequence[str]) -> Blocks | None:
    """Return columns of plain numbers block by block: float32 if all of them are, else float64.

    None if they are few, of other kinds, or in a frame that gives them fast enough one by one, as pyarrow's do.
    """
    if len(names) < WIDE:
        return None
    native, width = frame.to_native(), WIDE
    of: Callable[[int, int], NDArray[Any]]
    if nw.dependencies.is_pandas_dataframe(native):
        place = native.columns.get_indexer(list(names))
        kinds = set(native.dtypes.to_numpy()[place])
        if not kinds <= _PLAIN:
            return None
        dtype = np.dtype(np.float32 if kinds == {np.dtype(np.float32)} else np.float64)

        def of(low: int, high: int) -> NDArray[Any]:
            return np.asarray(native.iloc[:, place[low:high]].to_numpy(dtype))
    elif nw.dependencies.is_polars_dataframe(native):
        schema = frame.schema
        found = {schema[name] for name in names}
        if not all(type(kind) in _PLAIN_POLARS for kind in found):
            return None
        dtype = np.dtype(np.float32 if found == {nw.Float32} else np.float64)

        width = len(names)  # each choice of columns costs polars a look at all

        def of(low: int, high: int) -> NDArray[Any]:
            return np.asarray(native.select(list(names)).to_numpy(order="c"), dtype)
    else:
        return None
    return Blocks(of, len(names), dtype, width)


def column_kinds(frame: nw.DataFrame[Any]) -> Mapping[str, Any]:
    """Return narwhals' types of the columns; in a wide pandas frame the type of plain numbers is looked up once."""
    native = frame.to_native()
    if len(frame.columns) < WIDE or not nw.dependencies.is_pandas_dataframe(native):
        return frame.schema
    kinds = native.dtypes.to_numpy()
    held = dict(zip(frame.columns, kinds, strict=True))
    first = {kind: name for name, kind in held.items() if kind in _PLAIN}
    known = {kind: frame.select(name).schema[name] for kind, name in first.items()}
    odd = [name for name, kind in held.items() if kind not in known]
    others = frame.select(odd).schema if odd else {}
    return {name: known[kind] if kind in known else others[name] for name, kind in held.items()}
