"""What estimators on features and metadata share: which columns are which, and the design that fit learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix.design.fit import Design, fit_design
from residmix.design.formula import formula_columns
from residmix.sources.table import Table

__all__ = ["MetadataTransformer", "refuse_frames"]


def refuse_frames(estimator: BaseEstimator) -> None:
    """Raise if `estimator` is to return frames while the results have another place to go to."""
    if _get_output_config("transform", estimator)["dense"] != "default":
        raise ValueError("what out= names can't become a frame; call set_output(transform='default')")


class MetadataTransformer(TransformerMixin, BaseEstimator):
    """A transformer of features whose fit reads metadata, from X itself or beside it."""

    formula: str | None
    preserve: str | None
    features: Sequence[str] | None

    def _learn(self, X: Any, table: Table, sample_weight: Any, **options: Any) -> None:
        """Settle design and features; `options` go to :func:`residmix.design.fit.fit_design`."""
        self.design_: Design | None = None
        used: tuple[str, ...] = (sample_weight,) if isinstance(sample_weight, str) else ()
        if table.has_metadata or self.formula is not None:
            if not table.metadata_columns or not (table.named or table.has_metadata):
                raise ValueError(
                    f"formula {self.formula!r} needs metadata, and X is an array without column names; pass metadata=, "
                    "or X as a table"
                )
            wanted = None
            if self.formula is not None:
                both = [text for text in (self.formula, self.preserve) if text is not None]
                wanted = tuple(dict.fromkeys(name for text in both for name in formula_columns(text)))
                used += wanted
            self.design_ = fit_design(
                (lambda: table.chunks(wanted)) if wanted != () else None,
                formula=self.formula,
                preserve=self.preserve,
                **options,
            )
        elif self.preserve is not None:
            raise ValueError("preserve needs something to remove: give a formula, or metadata=")
        self._apart = table.has_metadata
        self.features_ = np.asarray(table.feature_names(self.features, exclude=used), dtype=object)
        self._named = table.named
        if self.design_ is None or self._apart:
            validate_data(self, X, reset=True, skip_check_array=True)
        else:
            self.feature_names_in_ = self.features_
            self.n_features_in_ = len(self.features_)

    def _check_metadata(self, X: Any, metadata: Any) -> None:
        """Check that further rows come with metadata if the first ones did."""
        if metadata is not None and self.design_ is None:
            raise ValueError(
                f"metadata= is given, but this {type(self).__name__} was fitted without any, so it takes nothing out; "
                "fit it with metadata="
            )
        if metadata is None and self._apart and self.design_ is not None and hasattr(X, "shape"):
            raise ValueError(
                f"metadata is needed: this {type(self).__name__} was fitted with metadata=; pass it here too"
            )

    def _check_columns(self, X: Any) -> None:
        """Check that X is as in fit, where it holds the features and nothing else."""
        if self.design_ is None or self._apart:
            validate_data(self, X, reset=False, skip_check_array=True)

    def _columns(self, table: Table) -> tuple[str, ...]:
        """Return what the features are called in `table`: by name, or by position where one side has no names."""
        if table.named == self._named:
            return tuple(self.features_)
        if len(table.columns) == len(self.features_):
            return table.columns
        if not self._named:
            return tuple(table.columns[int(name[1:])] for name in self.features_)
        raise ValueError(f"X has {len(table.columns)} columns and no names; give the {len(self.features_)} features")

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the features, which are also the names of what comes out."""
        check_is_fitted(self)
        return np.asarray(self.features_, dtype=object)
