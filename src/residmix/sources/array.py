"""Tables in memory: arrays (also memory-mapped) and data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray

from residmix.rows.checks import check_weight
from residmix.rows.rows import ArrayRows
from residmix.rows.threads import lazy
from residmix.sources.columns.blocks import column_kinds
from residmix.sources.frames import (
    as_frame,
    frame_of_strings,
    has_names,
    is_frame,
    numeric_columns,
    numeric_matrix,
    numeric_names,
    objects_that_are_numbers,
    pandas_view,
    refuse_other_order,
    require_columns,
    unmasked,
)
from residmix.sources.recipe import Recipe
from residmix.sources.table import Table

if TYPE_CHECKING:
    from residmix.design.fit import Design

__all__ = ["MemoryTable", "clean_metadata"]

Frame = nw.DataFrame[Any]


class MemoryTable(Table):
    """One table, or features and metadata side by side, in memory.

    Parameters
    ----------
    X : ndarray (n, d) or narwhals frame
    metadata : ndarray (n, p), narwhals frame, or None
        None: metadata are columns of `X`.
    columns : sequence of str, optional
        Names of the columns of an array. Default: x0, x1, ...
    """

    def __init__(
        self,
        X: NDArray[Any] | Frame,
        metadata: NDArray[Any] | Frame | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.X, self.M = X, metadata
        self.named = not isinstance(X, np.ndarray)
        self.has_metadata = metadata is not None
        if isinstance(X, np.ndarray):
            self.columns = tuple(columns or (f"x{j}" for j in range(X.shape[1])))
        else:
            self.columns = tuple(X.columns)
        if isinstance(metadata, np.ndarray):
            self.metadata_columns = tuple(f"m{j}" for j in range(metadata.shape[1]))
        else:
            self.metadata_columns = self.columns if metadata is None else tuple(metadata.columns)
        if metadata is not None and len(metadata) != len(X):
            raise ValueError(f"X has {len(X)} rows but metadata has {len(metadata)}; pass the same rows")

    @classmethod
    def make(cls, X: Any, metadata: Any = None, name: str = "X") -> MemoryTable:
        """Return a validated table of the user's data.

        Raises
        ------
        TypeError, ValueError
            As scikit-learn's ``check_array`` does for arrays: sparse, complex, not 2-d, no rows, no columns, texts.
        """
        refuse_other_order(X, metadata, "metadata")
        return cls(_features(X, name), None if metadata is None else clean_metadata(metadata))

    @classmethod
    def empty(cls, head: Any) -> MemoryTable:
        """Return a table without rows, of the columns that an empty array or frame has."""
        if is_frame(head):
            return cls(as_frame(head, "X"))
        return cls(head if head.dtype in (np.float32, np.float64) else head.astype(np.float64))

    def with_metadata(self, metadata: Any) -> MemoryTable:
        """Return the same features with separate metadata."""
        refuse_other_order(self._native, metadata, "metadata")
        return MemoryTable(self.X, clean_metadata(metadata), self.columns)

    def select(self, columns: Sequence[str]) -> MemoryTable:
        """Return some of the columns of X, as a view if they are all of them."""
        if tuple(columns) == self.columns:
            return self
        if isinstance(self.X, np.ndarray):
            place = {name: j for j, name in enumerate(self.columns)}
            return MemoryTable(self.X[:, [place[name] for name in columns]], self.M, columns)
        return MemoryTable(self.X.select(list(columns)), self.M)

    @lazy
    def numeric_columns(self) -> tuple[str, ...]:
        """Those that hold numbers; settled when asked, which a piece of a file never is."""
        return self.columns if isinstance(self.X, np.ndarray) else numeric_names(self.X)

    @property
    def n_rows(self) -> int:
        return len(self.X)

    @property
    def _native(self) -> Any:
        return self.X if isinstance(self.X, np.ndarray) else self.X.to_native()

    def column_types(self) -> Mapping[str, Any]:
        return {} if isinstance(self.X, np.ndarray) else column_kinds(self.X)

    def odd_numbers(self, names: Sequence[str]) -> list[str]:
        return [] if isinstance(self.X, np.ndarray) else objects_that_are_numbers(self.X, names)

    def column_pieces(self, name: str, n_rows: int) -> Iterator[Any]:
        assert not isinstance(self.X, np.ndarray)
        column = self.X.select(name)
        yield column[:n_rows]
        if len(column) > n_rows:
            yield column[n_rows:]

    def __getitem__(self, rows: slice) -> MemoryTable:
        """Return consecutive rows, as views."""
        return MemoryTable(self.X[rows], None if self.M is None else self.M[rows], self.columns)

    def metadata(self, columns: Sequence[str] | None = None) -> Any:
        """Return the metadata: the array (n, p) as it was given, or a frame with `columns` (default: all).

        Raises
        ------
        ValueError
            If there is none, or a column is unknown.
        """
        source = self.X if self.M is None else self.M
        if columns is None and isinstance(source, np.ndarray) and self.M is None:
            raise ValueError("X is a plain array without metadata; pass metadata=")
        if columns is None:
            return source if isinstance(source, np.ndarray) else source.to_native()
        require_columns(columns, self.metadata_columns, "metadata" if self.has_metadata else "the table")
        if self.M is not None and isinstance(source, np.ndarray):
            return source
        if isinstance(source, np.ndarray):
            import pyarrow as pa

            place = {name: j for j, name in enumerate(self.metadata_columns)}
            return pa.table({name: source[:, place[name]] for name in columns})
        return source.select(list(columns)).to_native()

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        yield self.metadata(columns)

    def batches(self) -> Iterator[Table]:
        yield self

    def matrix(self, features: Sequence[str] | None = None) -> tuple[NDArray[Any], NDArray[np.intp] | None]:
        """Return features as a matrix, and which of its columns they are if not all."""
        names = self.columns if features is None else tuple(features)
        require_columns(names, self.columns, "X")
        if isinstance(self.X, np.ndarray):
            if names == self.columns:
                return self.X, None
            place = {name: j for j, name in enumerate(self.columns)}
            return self.X, np.array([place[name] for name in names])
        return numeric_matrix(self.X, names), None

    def feature_columns(self, features: Sequence[str]) -> NDArray[Any] | list[NDArray[Any]]:
        """Return features as a matrix where X is one, else as a list of columns."""
        if isinstance(self.X, np.ndarray):
            X, columns = self.matrix(features)
            return X if columns is None else X[:, columns]
        require_columns(features, self.columns, "X")
        view = pandas_view(self.X, features)
        return numeric_columns(self.X, features) if view is None else view

    def design(self, design: Design, preserved: bool) -> tuple[Any, tuple[Any, ...]]:
        """Return the dense design columns (n, q) and the codes of absorbed factors."""
        names = (*design.columns, *design.preserved_columns) if preserved else design.columns
        if not names:
            made = design.matrix(None, preserved=preserved, n_rows=self.n_rows)
        elif design.array_width is not None and self.M is not None:
            made = design.matrix(self.metadata(), preserved=preserved)  # matched by position, so all of it
        else:
            made = design.matrix(self.metadata(names), preserved=preserved)
        return made.dense, tuple(made.codes)

    def weight_column(self, name: str) -> NDArray[np.float64]:
        """Return the column that holds the weights."""
        require_columns((name,), self.metadata_columns, "sample_weight")
        source = self.X if self.M is None else self.M
        if isinstance(source, np.ndarray):
            return np.ascontiguousarray(source[:, self.metadata_columns.index(name)], np.float64)
        return np.ascontiguousarray(numeric_matrix(source, (name,), "sample_weight")[:, 0], np.float64)

    def weight(self, weight: Any) -> NDArray[np.float64] | None:
        """Return checked sample weights; a string names the column that holds them."""
        refuse_other_order(self._native, weight, "sample_weight")
        return check_weight(self.weight_column(weight) if isinstance(weight, str) else weight, self.n_rows)

    def rows_of(self, recipe: Recipe) -> ArrayRows:
        weight = self.weight(recipe.weight)
        X, columns = self.matrix(recipe.features)
        dense, codes = self.design(recipe.design, recipe.preserved)
        return ArrayRows(X, dense, codes, weight, recipe.block_rows, columns=columns, finite=recipe.finite)


def _features(X: Any, name: str) -> NDArray[Any] | Frame:
    if is_frame(X) and not nw.dependencies.is_into_series(X) and has_names(X):
        frame = as_frame(X, name)
        _refuse_empty(frame.shape, name)
        if any(kind in (nw.List, nw.Array, nw.Object) for kind in set(column_kinds(frame).values())):
            from residmix.sources.columns.lists import spread_frame  # loads pyarrow, which few frames need

            return spread_frame(frame)
        return frame
    from sklearn.utils import check_array

    options = {"dtype": [np.float64, np.float32], "ensure_all_finite": False, "input_name": name}
    try:
        return np.asarray(check_array(unmasked(X), accept_sparse=False, **options))
    except ValueError as error:
        if nw.dependencies.is_pandas_dataframe(X) and "could not convert" in str(error):
            raise ValueError(
                f"{error}. The columns of {name} have labels that aren't strings ({X.columns[0]!r}, ...), so they "
                "are read as a plain array of numbers; if some are metadata, rename the columns to strings"
            ) from None
        raise


def _refuse_empty(shape: tuple[int, int], name: str) -> None:
    for count, what, axis in ((shape[0], "sample", 0), (shape[1], "feature", 1)):
        if count == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={shape}) while a minimum of 1 is required: "
                f"{name} has no {('rows', 'columns')[axis]}"
            )


def clean_metadata(metadata: Any) -> NDArray[Any] | Frame:
    """Return metadata as an array (n, p) of numbers, or as a frame.

    Raises
    ------
    TypeError, ValueError
        For sparse, complex, or more than 2-d metadata.
    """
    if is_frame(metadata) and has_names(metadata):
        return as_frame(metadata, "metadata")
    if isinstance(metadata, Mapping) or (getattr(metadata, "dtype", None) is not None and metadata.dtype.names):
        raise TypeError(
            f"metadata is {'a structured array' if hasattr(metadata, 'dtype') else f'a {type(metadata).__name__}'}; "
            "pass a data frame (pandas.DataFrame(metadata))"
        )
    if hasattr(metadata, "tocsr"):
        raise TypeError("metadata is a sparse matrix; pass a dense array (metadata.toarray()) or a data frame")
    values = np.asarray(unmasked(metadata))
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(
            f"metadata must have shape (n,) or (n, p), with one row for each row of X; got shape {values.shape}"
        )
    if values.dtype.kind in "iuf":
        return values
    if values.dtype.kind in "mM":
        raise TypeError(
            f"metadata holds {values.dtype}, which is neither a number nor text; convert it to a number (for example "
            "days since a date) or to text"
        )
    if values.dtype.kind == "c":
        raise ValueError(
            "metadata is complex; pass real numbers, for example the real and imaginary parts as two columns"
        )
    return frame_of_strings(values)
