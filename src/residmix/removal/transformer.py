"""Base of estimators on features and metadata: it finds the columns and fits the design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix.design.fit import Design, fit_design
from residmix.design.formula.parser import formula_columns
from residmix.moments.linear import linear_block_rows
from residmix.rows.rows import Rows
from residmix.sources.frames import refuse_unread
from residmix.sources.open import as_table
from residmix.sources.table import Table

__all__ = ["MetadataTransformer", "refuse_frames"]


def refuse_frames(estimator: BaseEstimator) -> None:
    """Raise if `estimator` is set to return data frames although out= is given."""
    if _get_output_config("transform", estimator)["dense"] != "default":
        raise ValueError("out= gives an array or a file, not a data frame; call set_output(transform='default')")


class MetadataTransformer(TransformerMixin, BaseEstimator):
    """A transformer of features whose fit uses metadata, from X itself or given separately."""

    formula: str | None
    preserve: str | None
    features: Sequence[str] | None
    design_: Design
    features_: NDArray[Any]
    _apart: bool
    _named: bool

    def _learn(self, X: Any, table: Table, sample_weight: Any, beside: Sequence[str] = (), **options: Any) -> None:
        """Find the features, `beside` not among them, and fit the design; `options` go to `fit_design`."""
        self.design_, used = self._learned_design(table, options)
        used = (
            *used,
            *beside,
            *(name for name in (sample_weight, getattr(self, "groups", None)) if isinstance(name, str)),
        )
        self._apart, self._named = table.has_metadata, table.named
        self.features_ = np.asarray(table.feature_names(self.features, exclude=used), dtype=object)
        if self.x_is_features:
            validate_data(self, X, reset=True, skip_check_array=True)
        else:
            self.feature_names_in_ = self.features_
            self.n_features_in_ = len(self.features_)

    def _learned_design(self, table: Table, options: dict[str, Any]) -> tuple[Design, tuple[str, ...]]:
        """Return the design of the metadata, and the columns that a formula names."""
        if not table.has_metadata and self.formula is None:
            if self.preserve is not None:
                raise ValueError("preserve= needs something to remove; pass a formula, or metadata=")
            return Design.empty(), ()
        if not table.metadata_columns or not (table.named or table.has_metadata):
            raise ValueError(
                f"formula {self.formula!r} needs metadata, and X is an array without column names; pass metadata=, "
                "or X as a table"
            )
        wanted: tuple[str, ...] | None = None
        if self.formula is not None:
            both = [text for text in (self.formula, self.preserve) if text is not None]
            wanted = tuple(dict.fromkeys(name for text in both for name in formula_columns(text)))
        elif getattr(self, "groups", None) in table.metadata_columns:
            wanted = tuple(name for name in table.metadata_columns if name != self.groups)
        design = fit_design(
            (lambda: table.chunks(wanted)) if wanted != () else None,
            formula=self.formula,
            preserve=self.preserve,
            **options,
        )
        return design, wanted or ()

    @property
    def x_is_features(self) -> bool:
        """Whether X holds the features and nothing else."""
        return self._apart or self.formula is None

    # ---- later rows --------------------------------------------------------------------------------------------------

    def open_rows(
        self,
        X: Any,
        metadata: Any = None,
        *,
        check: bool = True,
        fitting: bool = False,
        wanted: bool = True,
        design: Design | None = None,
    ) -> Table:
        """Return new rows, after fit, as a table with the metadata that are needed, or raise.

        Parameters
        ----------
        X, metadata
            As in the first fit. Unused metadata are ignored.
        check : bool
            Whether X must have the columns that it had in fit.
        fitting : bool
            Whether these are further training rows, which must have the metadata that the first rows had.
        wanted : bool
            Whether the metadata are used at all.
        design : Design, optional
            Another design for the same metadata.

        Raises
        ------
        ValueError
            If metadata are missing, or, when fitting, if the first rows had none.
        """
        if metadata is not None and fitting and not self._apart and self.formula is None:
            raise ValueError(
                f"metadata= is given, but this {type(self).__name__} was fitted without it; call fit with metadata="
            )
        design = self.design_ if design is None else design
        if not wanted or not (design.columns or fitting):
            metadata = None
        elif metadata is None and self._apart and hasattr(X, "shape"):
            refuse_unread(X, "X")
            raise ValueError(
                f"metadata is needed: this {type(self).__name__} was fitted with metadata=; pass it here too"
            )
        table = as_table(X, metadata=metadata)
        if check and self.x_is_features:
            validate_data(self, X, reset=False, skip_check_array=True)
        return table

    def rows_of(
        self,
        table: Table,
        sample_weight: Any = None,
        *,
        design: Design | None = None,
        preserved: bool = False,
        block_rows: int | None = None,
        allow_nan: bool = False,
    ) -> Rows:
        """Return the rows of a table with the features and design columns of this fit.

        Parameters
        ----------
        table : Table
        sample_weight : array or str, optional
        design : Design, optional
            Another design for the same metadata.
        preserved : bool
            Whether the rows include the preserved columns.
        block_rows : int, optional
            Default: for sums of products.
        allow_nan : bool
            Whether features may have missing values.
        """
        design = self.design_ if design is None else design
        return table.rows(
            self._columns(table),
            design=design,
            weight=sample_weight,
            preserved=preserved,
            block_rows=block_rows or linear_block_rows(len(self.features_), len(design.column_names)),
            allow_nan=allow_nan,
        )

    def _columns(self, table: Table) -> tuple[str, ...]:
        """Return the features' columns in `table`: by name, or by position if one side has no names."""
        if table.named == self._named:
            return tuple(self.features_)
        if len(table.columns) == len(self.features_):
            return table.columns
        if not self._named:
            return tuple(table.columns[int(name[1:])] for name in self.features_)
        raise ValueError(
            f"X has {len(table.columns)} columns without names, but {len(self.features_)} features are "
            "needed; pass the features only, or a table with names"
        )

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the features, which are also those of the output."""
        check_is_fitted(self)
        return np.asarray(self.features_, dtype=object)

    def _refuse_other(self, other: MetadataTransformer) -> None:
        """Raise unless `other` is of the same kind and was fitted with the same features and design."""
        kind = type(self).__name__
        if not isinstance(other, type(self)):
            raise TypeError(f"merge takes another {kind}, not {type(other).__name__}")
        check_is_fitted(self)
        check_is_fitted(other)
        if list(self.features_) != list(other.features_):
            raise ValueError("can't merge: the features differ; fit both models on the same features")
        if self.design_ is not other.design_ and not self.design_.same_coding(other.design_):
            raise ValueError(
                "can't merge: the designs differ (formula, levels or knots); write the levels in the formula, as "
                "C(site, levels=[...])"
            )

    @staticmethod
    def _from_older(attributes: dict[str, Any]) -> dict[str, Any]:
        """Convert attributes of an older model file, where the empty design was None."""
        if attributes.get("design_", Design) is None:
            return attributes | {"design_": Design.empty()}
        return attributes
