"""Table: the common interface of arrays, frames, files, streams and Dask collections."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from residmix.design.design import Design
from residmix.errors import DesignWarning, warn
from residmix.rows.checks import Finite
from residmix.rows.rows import Rows
from residmix.sources.frames import require_columns, row_labels
from residmix.sources.recipe import DEFAULT_BLOCK_ROWS, NO_METADATA, Recipe

__all__ = ["Table"]


class Table(ABC):
    """Features and metadata of the same rows, from any source.

    Attributes
    ----------
    named : bool
        False for plain arrays, whose columns are called x0, x1, ...
    columns : tuple of str
        All columns of X.
    numeric_columns : tuple of str
        Those that hold numbers (truth values don't count).
    has_metadata : bool
        Whether metadata were passed separately from X.
    metadata_columns : tuple of str
        The names that a formula may use: of the metadata given apart (m0, m1, ... for an array), else those of X.
    left_out : list of dict
        Which columns were left out when features weren't named: "column", "reason" and whether the column may have
        been meant to be one ("numeric"). There once features have been settled.
    one_pass : bool
        True for a one-shot iterator, which only `batches` can read.
    paths : tuple of path
        The files that are read again on each pass, which no output may overwrite.
    """

    named: bool
    columns: tuple[str, ...]
    numeric_columns: tuple[str, ...]
    has_metadata: bool
    metadata_columns: tuple[str, ...]
    one_pass: bool = False
    paths: tuple[str | os.PathLike[str], ...] = ()
    left_out: Sequence[dict[str, Any]] = ()

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows. May cost a pass where the source doesn't know (CSV, batches)."""

    def feature_names(
        self, features: Sequence[str] | Sequence[int] | None = None, *, exclude: Iterable[str] = ()
    ) -> tuple[str, ...]:
        """Return the names of the feature columns.

        Parameters
        ----------
        features : sequence of str (or of int, for plain arrays), optional
            What the user asked for. Default: every column if metadata are separate from X, else the numeric columns
            that aren't in `exclude`. A column that holds no numbers is refused when rows are made.
        exclude : iterable of str
            Columns of one table that are used otherwise: metadata, weights.

        Raises
        ------
        ValueError
            For an unknown or doubled name, a feature that is also metadata, or if nothing is left.
        """
        others = set() if self.has_metadata else set(exclude)
        if features is None:
            if self.has_metadata:
                return self.columns
            names = tuple(name for name in self.numeric_columns if name not in others)
            labels = row_labels(names)
            if labels:
                warn(
                    f"column {labels[0]!r} looks like row numbers that were written with the table, so it is left "
                    "out of the features. Drop it, or name the features with features=",
                    DesignWarning,
                )
                names = tuple(name for name in names if name not in labels)
            self._tell_left_out(names, labels, others)
            if not names:
                raise ValueError(
                    f"no numeric column is left for the features; the table has the columns {', '.join(self.columns)}"
                )
            return names
        if isinstance(features, str):
            raise TypeError(f"features must be a list of column names, not the string {features!r}")
        names = tuple(self._name(feature) for feature in features)
        require_columns(names, self.columns, "features")
        if not names:
            raise ValueError("features is empty; name at least one column")
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise ValueError(f"features names column {name!r} twice")
            if name in others:
                raise ValueError(f"column {name!r} can't be both a feature and metadata; use it as one of them")
            seen.add(name)
        return names

    def _tell_left_out(self, names: Sequence[str], labels: Sequence[str], others: Iterable[str]) -> None:
        """Set `left_out`, and tell of it."""
        used = {*names, *labels, *others}
        rest = [name for name in self.columns if name not in used]
        told: list[dict[str, Any]] = [{"column": name, "reason": "row numbers", "numeric": False} for name in labels]
        if rest:
            from residmix.sources.columns.left_out import left_out, tell_left_out

            found = left_out(self, rest)
            tell_left_out(found)
            told += found
        self.left_out = told

    def column_types(self) -> Mapping[str, Any]:
        """Return narwhals' types of the columns; none for arrays."""
        return {}

    def odd_numbers(self, names: Sequence[str]) -> list[str]:
        """Return which columns hold numbers in a way that doesn't count as numeric."""
        return []

    def column_pieces(self, name: str, n_rows: int) -> Iterator[Any]:
        """Yield frames with a column, the first of about `n_rows` rows."""
        raise TypeError(f"a {type(self).__name__} has only numeric columns")

    def _name(self, feature: Any) -> str:
        if isinstance(feature, str):
            return feature
        if self.named or isinstance(feature, bool) or not hasattr(feature, "__index__"):
            raise TypeError(f"features must be column names; got {feature!r}")
        position = feature.__index__()
        if not 0 <= position < len(self.columns):
            raise ValueError(f"features has index {position}, but the array has {len(self.columns)} columns")
        return str(self.columns[position])

    @abstractmethod
    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yield the metadata in order: frames with `columns` (default: all), or arrays (b, p) if given as one."""

    def rows(
        self,
        features: Sequence[str] | None = None,
        *,
        design: Design = NO_METADATA,
        weight: Any = None,
        preserved: bool = False,
        block_rows: int = DEFAULT_BLOCK_ROWS,
        allow_nan: bool = False,
    ) -> Rows:
        """Return the rows that statistics are folded over.

        Parameters
        ----------
        features : sequence of str, optional
            As `feature_names` returned them.
        design : Design, optional
            Fitted map from metadata to design columns; `preserved` adds the columns that are estimated only.
        weight : array (n,) or str, optional
            Sample weights, or the column that holds them.
        block_rows : int
            Rows in a block: a function of the problem, never of the machine.
        allow_nan : bool
            Let NaN features through. Infinities are refused always, in the first pass.
        """
        names = self.columns if features is None else tuple(features)
        require_columns(names, self.columns, "X")
        return self.rows_of(Recipe(names, Finite(names, allow_nan), design, preserved, weight, block_rows))

    @abstractmethod
    def rows_of(self, recipe: Recipe) -> Rows:
        """Return the rows that are made by a recipe."""

    @abstractmethod
    def batches(self) -> Iterator[Table]:
        """Yield the data once, in order, as tables in memory."""
