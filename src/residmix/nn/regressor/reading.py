"""From what the user passes to features and design columns: arrays beside metadata, or one table with a formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from residmix.design.fit import Design, fit_design
from residmix.effects.unmeasured.later import refused_of_gate
from residmix.errors import DesignWarning, warn
from residmix.nn.regressor.targets import advising, read_rows
from residmix.rows.block import Block
from residmix.sources.open import as_table
from residmix.sources.recipe import NO_METADATA
from residmix.sources.table import Table

__all__ = ["TableReader"]

Array = NDArray[np.float64]

_REMEDY = "MDNRegressor doesn't support these; fill them, or leave these rows out"


@contextmanager
def _naming_columns(X: Any) -> Iterator[None]:
    """Errors about values of a data frame say which columns hold them."""
    try:
        yield
    except ValueError as error:
        if found := _at_fault(X):
            raise ValueError(f"{error}\n{found}") from None
        raise


def _at_fault(X: Any) -> str:
    """Columns of a frame that hold text, NaN or infinity, with the first such row."""
    found = []
    try:
        frame = nw.from_native(X, eager_only=True)
    except TypeError:
        return ""
    for column in frame.iter_columns():
        try:
            values = np.asarray(column.to_numpy(), dtype=np.float64)
        except (TypeError, ValueError):
            found.append(f"column {column.name!r} holds {column.dtype}, not numbers")
            continue
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            found.append(f"column {column.name!r} has {values[row]} in {int(bad.sum())} row(s), the first in row {row}")
    return "; ".join(found[:5])


class TableReader(BaseEstimator):
    """The reading half of `MDNRegressor`, whose parameters these are."""

    formula: str | None
    preserve: str | None
    features: Sequence[str] | None
    space: str
    design_: Design | None
    feature_names_in_: NDArray[np.object_]
    n_features_in_: int
    _features: tuple[str, ...]

    def _read(self, X: Any, metadata: Any, *, fitting: bool) -> tuple[Array, Array]:
        """Features and the design of what metadata is needed (with the preserved columns when fitting)."""
        if self.formula is None and metadata is None and (fitting or self.design_ is None or self.space == "sample"):
            if not fitting and self.design_ is not None:
                raise ValueError("this model was fitted with metadata and space='sample': pass metadata= to predict")
            if fitting and self.preserve is not None:
                raise ValueError("preserve= needs something to remove; pass a formula, or metadata=")
            if fitting:
                self.design_ = None
            if self.features is None:
                least = 2 if fitting else 1
                with _naming_columns(X):
                    values = validate_data(self, X, reset=fitting, dtype=np.float64, ensure_min_samples=least)
                return values, np.empty((len(values), 0))
            table = as_table(X)
        else:
            table = as_table(X, metadata=metadata)
            if fitting:
                with advising(_REMEDY):
                    self.design_ = fit_design(
                        table.chunks, formula=self.formula, preserve=self.preserve, absorb_above=10**9
                    )
            elif self.design_ is None:
                raise ValueError("metadata was given, but this model was fitted without it; leave it out")
        names = self._learn_names(table) if fitting else self._features
        if not table.named and self.features is None and len(table.columns) != self.n_features_in_:
            raise ValueError(
                f"X has {len(table.columns)} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        needed = fitting or self.space == "sample"
        with advising(_REMEDY):
            return read_rows(table, names, self._design() if needed else NO_METADATA, preserved=fitting)

    def _refuse_unseen(self, matrix: Array, mean: Array) -> None:
        """Raise for design rows `matrix` with a combination of levels that no row had in fit, whose mean is given."""
        if found := refused_of_gate(self._design(), mean):
            remedy = "leave such rows out, or fit without the interaction"
            replace(found, remedy=remedy)(Block(0, matrix[:, :0], matrix, ()))

    def _design(self) -> Design:
        return NO_METADATA if self.design_ is None else self.design_

    def _learn_names(self, table: Table) -> tuple[str, ...]:
        used = (*self._design().columns, *self._design().preserved_columns)
        self._features = table.feature_names(self.features, exclude=used)
        # Elsewhere a note is enough; a regression that never saw a factor it was given is another one.
        left = [each["column"] for each in table.left_out if not each["numeric"] and each["reason"] != "row numbers"]
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            warn(
                f"non-numeric columns are left out of the features: {', '.join(left[:5])}{more}. Code them as "
                "numbers, use them in the formula, or name the features",
                DesignWarning,
                kind="columns-left-out",
                columns=list(left),
            )
        self.n_features_in_ = len(self._features)
        self.__dict__.pop("feature_names_in_", None)
        if table.named:
            self.feature_names_in_ = np.asarray(self._features, dtype=object)
        return self._features
