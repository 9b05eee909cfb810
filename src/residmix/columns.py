"""Metadata columns read one by one, out of arrays and of pandas, polars or pyarrow tables."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.errors import did_you_mean

__all__ = ["Cells", "Metadata", "open_metadata", "plain_matrix", "spotted"]


@dataclass(frozen=True)
class Cells:
    """The values of one column: numbers as float64, anything else as a list of labels.

    Attributes
    ----------
    kind : {"number", "label", "empty"}
        "empty" when every value is missing, which says nothing about the kind.
    values : ndarray (b,) of float64, or list
        Numbers, or labels (str, bool). NaN or None where missing.
    missing : ndarray (b,) of bool, or None
        None when nothing is missing.
    whole : bool
        Whether the column is stored as integers.
    """

    kind: str
    values: Any
    missing: NDArray[np.bool_] | None
    whole: bool = False

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return the values where numbers are needed.

        Raises
        ------
        TypeError
            If they are text.
        """
        if self.kind == "label":
            first = next((value for value in self.values if value is not None and value == value), None)
            raise TypeError(f"metadata column {name!r} must hold numbers, and holds {first!r}")
        return np.asarray(self.values, dtype=np.float64)


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

    def read(self, name: str, *, labels: bool = False) -> Cells:
        """Return column `name`; `labels` asks for labels even when it holds numbers."""
        if name not in self._places:
            raise ValueError(
                f"unknown metadata column {name!r}{did_you_mean(name, self.names)}; "
                f"there are {_few(map(repr, self.names))}"
            )
        if self.is_array:
            return _array_cells(name, self.native[:, self._places[name]], labels)
        return _series_cells(name, self.native.get_column(self.native.columns[self._places[name]]), labels)


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
                raise TypeError(f"metadata columns must have strings as names, not {_few(map(repr, names))}")
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


def _array_cells(name: str, values: NDArray[Any], labels: bool) -> Cells:
    whole = values.dtype.kind != "f"
    numbers_ = values.astype(np.float64)
    cells = _number_cells(name, numbers_, whole)
    return _relabelled(cells, values.tolist()) if labels else cells


def _number_cells(name: str, values: NDArray[np.float64], whole: bool) -> Cells:
    finite = np.isfinite(values)
    if finite.all():
        return Cells("number", values, None, whole)
    infinite = np.isinf(values)
    if infinite.any():
        raise ValueError(f"metadata column {name!r} holds {spotted(infinite, 'infinite value')}")
    return Cells("empty" if not finite.any() else "number", values, ~finite, whole)


def _relabelled(cells: Cells, values: list[Any]) -> Cells:
    return Cells("label" if cells.kind == "number" else cells.kind, values, cells.missing, cells.whole)


def _series_cells(name: str, series: Any, labels: bool) -> Cells:
    import narwhals.stable.v2 as nw

    dtype = series.dtype
    if dtype.is_numeric():
        numeric = series if dtype == nw.Float64 else series.cast(nw.Float64)
        values = np.asarray(numeric.to_numpy(), dtype=np.float64)
        cells = _number_cells(name, values, dtype.is_integer())
        return _relabelled(cells, series.to_list()) if labels else cells
    missing = np.asarray(series.is_null().to_numpy(), dtype=bool)
    gaps = missing if missing.any() else None
    if missing.all():
        return Cells("empty", [None] * len(series), missing if len(series) else None)
    if dtype in (nw.String, nw.Categorical, nw.Enum, nw.Boolean):
        return Cells("label", series.to_list(), gaps)
    if dtype != nw.Object:
        raise TypeError(
            f"metadata column {name!r} holds {dtype}, which is neither numbers nor labels; turn it into a number "
            "(for example days since a date) or into text"
        )
    values = series.to_list()
    present = [value for value, gap in zip(values, missing, strict=True) if not gap]
    if all(isinstance(value, str) for value in present) or all(isinstance(value, bool) for value in present):
        return Cells("label", values, gaps)
    if all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in present):
        filled = np.array([np.nan if gap else float(v) for v, gap in zip(values, missing, strict=True)])
        cells = _number_cells(name, filled, all(isinstance(value, numbers.Integral) for value in present))
        return _relabelled(cells, values) if labels else cells
    kinds = sorted({type(value).__name__ for value in present})
    raise TypeError(f"metadata column {name!r} mixes values of types {_few(kinds)}; make them all numbers or text")
