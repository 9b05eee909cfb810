"""Metadata columns read one by one, out of arrays and of pandas, polars or pyarrow tables."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import did_you_mean

__all__ = ["Cells", "Labels", "Metadata", "absent", "float_values", "open_metadata", "plain_matrix", "spotted"]


@dataclass(frozen=True)
class Cells:
    """What one column holds.

    Attributes
    ----------
    kind : {"number", "label", "empty"}
        "empty" when every value is missing, which says nothing about the kind.
    values : ndarray (b,) of float64, or None
        NaN where missing. None for labels, which :meth:`Metadata.labels` gives.
    missing : ndarray (b,) of bool, or None
        None when nothing is missing.
    """

    kind: str
    values: NDArray[np.float64] | None
    missing: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Labels:
    """One column as labels: each distinct one once, so that no row costs a Python object.

    Attributes
    ----------
    distinct : list
        Python values in any order. It may hold values that no row has; :func:`absent` recognises missing ones.
    index : ndarray (b,) of int
        Which of them each row has.
    """

    distinct: list[Any]
    index: NDArray[np.integer[Any]]

    def counts(self) -> Iterator[tuple[Any, int]]:
        """Yield each label that isn't missing, and how many rows have it."""
        rows = np.bincount(self.index, minlength=len(self.distinct)).tolist()
        return ((label, n) for label, n in zip(self.distinct, rows, strict=True) if n and not absent(label))


class Metadata:
    """Named columns of one table or array."""

    def __init__(self, names: tuple[str, ...], n_rows: int, native: Any) -> None:
        self.names, self.n_rows, self.native = names, n_rows, native
        self._places = {name: place for place, name in enumerate(names)}

    @property
    def is_array(self) -> bool:
        return isinstance(self.native, np.ndarray)

    def renamed(self, names: tuple[str, ...]) -> Metadata:
        """Return the same columns under other names, by position."""
        return Metadata(names, self.n_rows, self.native)

    def _column(self, name: str) -> Any:
        if name not in self._places:
            raise ValueError(
                f"unknown metadata column {name!r}{did_you_mean(name, self.names)}; "
                f"there are {_few(map(repr, self.names))}"
            )
        if self.is_array:
            return self.native[:, self._places[name]]
        return self.native.get_column(self.native.columns[self._places[name]])

    def read(self, name: str) -> Cells:
        """Return what column `name` holds.

        Raises
        ------
        ValueError
            If there is no such column, or it holds infinite values.
        TypeError
            If it holds dates, or values of several kinds.
        """
        column = self._column(name)
        if self.is_array:
            return _number_cells(name, column.astype(np.float64))
        return _series_cells(name, column)

    def numbers(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
        """Return column `name` as numbers, and where it is missing.

        Raises
        ------
        TypeError
            If it holds text; see also :meth:`read`.
        """
        cells = self.read(name)
        if cells.kind == "label":
            first = next(label for label, _ in self.labels(name).counts())
            raise TypeError(f"metadata column {name!r} must hold numbers, and holds {first!r}")
        values = np.full(self.n_rows, np.nan) if cells.values is None else cells.values
        return values, cells.missing

    def labels(self, name: str) -> Labels:
        """Return column `name` as labels."""
        column = self._column(name)
        if self.is_array:
            distinct, index = np.unique(column, return_inverse=True)
            return Labels(distinct.tolist(), index.reshape(-1))
        if column.implementation.is_pandas():
            return _pandas_labels(column.to_native())
        return _arrow_labels(column.to_arrow())


def _pandas_labels(series: Any) -> Labels:
    import pandas as pd

    index, distinct = pd.factorize(series)
    return _with_none(distinct.tolist(), index, index < 0)


def _arrow_labels(array: Any) -> Labels:
    import pyarrow as pa
    import pyarrow.compute as pc

    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    if not pa.types.is_dictionary(chunked.type):
        if chunked.type not in (pa.string(), pa.large_string()) and "view" in str(chunked.type):
            chunked = chunked.cast(pa.large_string())
        chunked = pc.dictionary_encode(chunked)
    encoded = chunked.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no chunks at all
        return Labels([], np.empty(0, np.intp))
    index = encoded.indices
    missing = np.asarray(index.is_null()) if index.null_count else None
    return _with_none(encoded.dictionary.to_pylist(), np.asarray(index.fill_null(0)), missing)


def _with_none(distinct: list[Any], index: NDArray[Any], missing: NDArray[np.bool_] | None) -> Labels:
    """Return labels in which the missing rows have the label None."""
    if missing is None or not missing.any():
        return Labels(distinct, index)
    return Labels([*distinct, None], np.where(missing, len(distinct), index))


def absent(value: Any) -> bool:
    """Return whether a label is missing: None, NaN or pandas' NA."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def open_metadata(metadata: Any) -> Metadata:
    """Return the columns of an array, a data frame or a single series.

    The columns of an array are called m0, m1, ...

    Raises
    ------
    TypeError
        If it is neither an array of numbers nor a pandas, polars or pyarrow table.
    """
    import narwhals.stable.v2 as nw

    if isinstance(metadata, Metadata):
        return metadata
    if not isinstance(metadata, np.ndarray):
        frame = nw.from_native(metadata, eager_only=True, allow_series=True, pass_through=True)
        if isinstance(frame, nw.Series):
            frame = frame.alias(frame.name or "m0").to_frame()
        if isinstance(frame, nw.DataFrame):
            names = tuple(frame.columns)
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"the names of metadata columns must be strings, not {_few(map(repr, names))}")
            return Metadata(names, len(frame), frame)
    matrix = plain_matrix(metadata)
    return Metadata(tuple(f"m{j}" for j in range(matrix.shape[1])), len(matrix), matrix)


def plain_matrix(metadata: Any) -> NDArray[Any]:
    """Return metadata given as an array: numbers, (b, p); a 1-d array is one column."""
    matrix = np.asarray(metadata)
    if matrix.dtype.kind not in "fiub":
        raise TypeError(
            f"a metadata array must hold numbers, not {matrix.dtype} (type {type(metadata).__name__}); "
            "give text, dates or mixed columns as a pandas, polars or pyarrow table"
        )
    if matrix.ndim not in (1, 2):
        raise ValueError(f"a metadata array must be (n,) or (n, p), not {matrix.shape}")
    return matrix[:, None] if matrix.ndim == 1 else matrix


def spotted(mask: NDArray[np.bool_], what: str) -> str:
    """Return "3 missing values (the first in row 17)"."""
    count = int(mask.sum())
    return f"{count} {what}{'s' if count > 1 else ''} (the first in row {int(mask.argmax())})"


def _few(items: Iterable[str], most: int = 12) -> str:
    shown = list(items)
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")


def _number_cells(name: str, values: NDArray[np.float64]) -> Cells:
    finite = np.isfinite(values)
    if finite.all():
        return Cells("number", values, None)
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(f"metadata column {name!r} holds {spotted(infinite, 'infinite value')}")
    return Cells("number" if finite.any() else "empty", values, ~finite)


def float_values(series: Any) -> NDArray[np.float64]:
    """Return a series of numbers or truth values as float64, rounded where they are longer; missing ones are NaN."""
    import narwhals.stable.v2 as nw

    if series.implementation.is_pyarrow() and series.dtype.is_integer():  # whose casts refuse to round
        return np.asarray(series.to_native().cast("float64", safe=False).to_numpy(), dtype=np.float64)
    numeric = series if series.dtype == nw.Float64 else series.cast(nw.Float64)
    return np.asarray(numeric.to_numpy(), dtype=np.float64)


def _series_cells(name: str, series: Any) -> Cells:
    import narwhals.stable.v2 as nw

    dtype = series.dtype
    if dtype.is_numeric():
        return _number_cells(name, float_values(series))
    missing = np.asarray(series.is_null().to_numpy(), dtype=bool)
    gaps = missing if missing.any() else None
    if missing.all():
        return Cells("empty", None, gaps)
    if dtype in (nw.String, nw.Categorical, nw.Enum, nw.Boolean):
        return Cells("label", None, gaps)
    if dtype == nw.Binary:
        raise TypeError(f"metadata column {name!r} holds bytes instead of text; decode it, or save its file as UTF-8")
    if dtype != nw.Object:
        kind = getattr(series.to_native(), "dtype", dtype) if dtype == nw.Unknown else dtype
        raise TypeError(
            f"metadata column {name!r} holds {kind}, which is neither a number nor text; convert it to a number (for "
            "example days since a date) or to text"
        )
    values = series.to_list()
    present = [value for value, gap in zip(values, missing, strict=True) if not gap]
    if all(isinstance(value, str) for value in present) or all(isinstance(value, bool) for value in present):
        return Cells("label", None, gaps)
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in present):
        filled = np.array([np.nan if gap else float(v) for v, gap in zip(values, missing, strict=True)])
        return _number_cells(name, filled)
    kinds = sorted({type(value).__name__ for value in present})
    what = f"holds values of type {kinds[0]}" if len(kinds) == 1 else f"mixes values of types {_few(kinds)}"
    raise TypeError(f"metadata column {name!r} {what}; make them all numbers or text")
