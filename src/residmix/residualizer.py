"""Residualizer: take out of features what metadata explain."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from residmix import inference
from residmix._validation import check_choice
from residmix.errors import CollinearityWarning, DesignWarning
from residmix.formula import formula_columns
from residmix.metadata import Design, fit_design
from residmix.moments.linear import Affine, LinearMoments, linear_block_rows, merge_moments
from residmix.moments.solve import LinearFit, fit_linear, solve_moments
from residmix.penalty import ridge_penalty
from residmix.sources.rows import Rows
from residmix.sources.table import Table, as_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Residualizer"]

# Above this canonical correlation, what is removed and what is preserved share more than 9/10 of their variance.
_ENTANGLED = 0.95


class Residualizer(TransformerMixin, BaseEstimator):
    r"""Residuals of features on metadata, fitted by least squares.

    .. math:: r = x - \bar x - (a(m) - \bar a)' B

    where a(m) is the design row that `formula` makes of the metadata m, and B minimises the (weighted) sum of
    squares over the training rows. Residuals are centred and in the units of x. Fit reads the data once, transform
    reads and writes once.

    Parameters
    ----------
    formula : str, optional
        What to remove, such as ``"C(site) + bs(age, df=4)"``. Its columns are taken from `metadata`, or from X
        itself if X is a table and no metadata is given. Without a formula every metadata column is removed (numbers
        as they are, text and categories as factors); without metadata, features are only centred.
    preserve : str, optional
        Formula of effects that are estimated beside the removed ones, and kept. Transform doesn't need their columns.
    features : list of str, optional
        Columns of X to residualize. Default: all, apart from the metadata.
    alpha : float or dict, default 0
        Ridge penalty: adds ``alpha * sum of squares of the coefficients``, those of removed terms, as
        :class:`sklearn.linear_model.Ridge` does; or one number per term, ``{"site": 10.0}``. Of a factor the effects
        of the levels about their mean are penalised, so that the reference level doesn't matter.
    on_unknown : {"error", "mean"}, default "error"
        What to do in transform with a level that fit didn't see: raise, or give it the average effect of the known
        levels.
    missing : {"error", "mean", "indicator"}, default "error"
        What to do with missing metadata: raise; use the mean; or the mean and an effect of its own.
        Missing *features* are always allowed: each feature is fitted on the rows that it has, and NaN stays NaN.

    Attributes
    ----------
    coef_ : ndarray (p, d)
        Coefficients of the removed design columns; of least norm (intercept included) if columns are collinear.
    intercept_ : ndarray (d,)
        So that the residual is ``x - intercept_ - a(m) @ coef_``.
    preserved_coef_ : ndarray (k, d)
        Coefficients of the preserved design columns.
    design_columns_ : list of str
        Names of the p removed columns.
    features_ : ndarray of str (d,)
        Names of the features.
    rank_ : int
        Rank of the centred design.
    condition_number_ : float
        Of the centred design with columns of unit variance.
    r2_ : ndarray (d,)
        Share of the variance of each feature that the design explains, preserved terms included.
    canonical_correlations_ : ndarray
        Between removed and preserved columns; empty if nothing is preserved.
    design_ : Design or None
        The fitted map from metadata to design columns.
    fit_ : LinearFit
        Everything the solver found.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if X had column names.

    Warns
    -----
    CollinearityWarning
        If columns of the design are aliased, by name; or if removed and preserved effects are nearly collinear.
    DesignWarning
        If there are so many design columns that residuals lose most of their variance.
    RareLevelWarning
        If a level has fewer than three rows.

    Notes
    -----
    The usual path is one pass over centred moments. Where their condition number says that digits would be lost, a
    second pass triangularises the data (Demmel et al. 2012) and a third refines the solution.

    Examples
    --------
    >>> import pandas as pd
    >>> import residmix as rm
    >>> table = pd.DataFrame({"site": ["a", "a", "b", "b", "a", "b"], "x": [1.0, 2.0, 11.0, 12.0, 3.0, 13.0]})
    >>> rm.Residualizer("site").fit_transform(table).ravel().tolist()
    [-1.0, 0.0, -1.0, 0.0, 1.0, 1.0]
    """

    __metadata_request__fit = {"metadata": True}
    __metadata_request__partial_fit = {"metadata": True}
    __metadata_request__transform = {"metadata": True}
    __metadata_request__inverse_transform = {"metadata": True}

    def __init__(
        self,
        formula: str | None = None,
        *,
        preserve: str | None = None,
        features: Sequence[str] | None = None,
        alpha: float | dict[str, float] = 0.0,
        on_unknown: str = "error",
        missing: str = "error",
    ) -> None:
        self.formula = formula
        self.preserve = preserve
        self.features = features
        self.alpha = alpha
        self.on_unknown = on_unknown
        self.missing = missing

    # ---- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Estimate what the metadata explain.

        Parameters
        ----------
        X : array (n, d), or a table with the features and, if `metadata` isn't given, the metadata columns
        y : ignored
        metadata : array (n,) or (n, p), or table, optional
        sample_weight : array (n,) or str, optional
            A text names the column of X that holds the weights.

        Raises
        ------
        ValueError, TypeError
            For input that can't be used, with what to do about it.
        """
        self._fit(X, metadata, sample_weight)
        return self

    def fit_transform(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> NDArray[Any]:
        """Fit, and return the residuals (n, d) of the same rows."""
        rows = self._fit(X, metadata, sample_weight)
        return self._collected(rows, self._affine())

    def partial_fit(self, X: Any, y: Any = None, *, metadata: Any = None, sample_weight: Any = None) -> Self:
        """Fit on further rows, as if all rows so far had come at once.

        The first call learns the design (levels, knots), so its rows must show every level. Rows aren't seen again,
        so a design whose condition number is above 1e3 keeps fewer digits than `fit` gives it.
        """
        for table in as_table(X, metadata=metadata).batches():
            if not hasattr(self, "moments_"):
                self._start(X, table, sample_weight)
                self._solve(self._rows(table, sample_weight))
            else:
                if self.design_ is None or self._apart:
                    validate_data(self, X, reset=False, skip_check_array=True)
                _, moments = fit_linear(self._rows(table, sample_weight))
                self._update(merge_moments(self.moments_, moments))
        return self

    def merge(self, other: Residualizer) -> Self:
        """Take in the rows that `other`, of the same design, was fitted on; return self.

        Raises
        ------
        ValueError
            If designs or features differ.
        """
        check_is_fitted(self)
        check_is_fitted(other)
        mine, theirs = self.design_, other.design_
        if list(self.features_) != list(other.features_):
            raise ValueError("can't merge: the features differ")
        if not _same_coding(mine, theirs):
            raise ValueError(
                "can't merge: the designs differ (formula, levels or knots); fit both from the same levels"
            )
        self._update(merge_moments(self.moments_, other.moments_))
        return self

    def _fit(self, X: Any, metadata: Any, sample_weight: Any) -> Rows:
        table = as_table(X, metadata=metadata)
        self._start(X, table, sample_weight)
        rows = self._rows(table, sample_weight)
        self._solve(rows)
        return rows

    def _start(self, X: Any, table: Table, sample_weight: Any) -> None:
        """Check parameters, learn the design, settle the features."""
        check_choice("on_unknown", self.on_unknown, ("error", "mean"))
        check_choice("missing", self.missing, ("error", "mean", "indicator"))
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
                on_unknown=self.on_unknown,
                missing=self.missing,
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

    def _rows(self, table: Table, sample_weight: Any = None, *, preserved: bool = True) -> Rows:
        q = 0 if self.design_ is None else len(self.design_.column_names)
        return table.rows(
            self._columns(table),
            design=self.design_,
            weight=sample_weight,
            preserved=preserved,
            block_rows=linear_block_rows(len(self.features_), q),
            allow_nan=True,
        )

    def _columns(self, table: Table) -> tuple[str, ...]:
        """Return what the features are called in `table`: by name, or by position where one side has no names."""
        if table.named == self._named:
            return tuple(self.features_)
        if len(table.columns) == len(self.features_):
            return table.columns
        if not self._named:
            return tuple(table.columns[int(name[1:])] for name in self.features_)
        raise ValueError(f"X has {len(table.columns)} columns and no names; give the {len(self.features_)} features")

    def _solve(self, rows: Rows) -> None:
        self._set(*fit_linear(rows, penalty=ridge_penalty(self.design_, self.alpha)))

    def _update(self, moments: LinearMoments) -> None:
        self._set(solve_moments(moments, penalty=ridge_penalty(self.design_, self.alpha)), moments)

    def _set(self, fit: LinearFit, moments: LinearMoments) -> None:
        design = self.design_
        names = () if design is None else design.column_names
        p = 0 if design is None else design.n_removed
        self.fit_, self.moments_ = fit, moments
        affine = fit.affine(p)
        self.coef_, self.preserved_coef_ = fit.coef[:p], fit.coef[p:]
        self.intercept_ = affine.origin_x + (affine.constant - affine.origin_a @ affine.coef)
        self.design_columns_ = list(names[:p])
        self.rank_, self.condition_number_ = fit.rank, fit.condition_number
        self.r2_ = inference.explained(fit)
        self.canonical_correlations_ = (
            inference.canonical_correlations(moments.s_aa[0], p) if 0 < p < len(names) else np.empty(0)
        )
        _warn(fit, names, self.features_, self.canonical_correlations_, penalised=self.alpha != 0)

    # ---- applying ----------------------------------------------------------------------------------------------------

    def transform(self, X: Any, *, metadata: Any = None) -> NDArray[Any]:
        """Return the residuals (n, d), in the dtype of X.

        Parameters
        ----------
        X : array (n, d) or table
            As in fit. Columns that aren't used may be absent.
        metadata : array or table, optional
            As in fit.
        """
        check_is_fitted(self)
        return self._collected(self._new_rows(X, metadata), self._affine())

    def inverse_transform(self, X: Any, *, metadata: Any = None) -> NDArray[Any]:
        """Put the effect of the metadata back: features (n, d) from residuals.

        Parameters
        ----------
        X : array (n, d) or table
            Residuals.
        metadata : array or table, optional
            The profile to put the effect of: the rows' own, or another one ("as if all were measured at site A").
        """
        check_is_fitted(self)
        return self._collected(self._new_rows(X, metadata, check=False), self._affine(sign=1))

    def _affine(self, sign: int = -1) -> Affine:
        affine = self.fit_.affine(len(self.coef_))
        return Affine(affine.origin_x, affine.origin_a, affine.coef, affine.constant, sign)

    def _new_rows(self, X: Any, metadata: Any, check: bool = True) -> Rows:
        if self.design_ is None or not self.design_.columns:
            metadata = None
        elif self._apart and metadata is None and not isinstance(X, Table):
            raise ValueError("metadata is needed: this Residualizer was fitted with metadata=; pass it here too")
        table = as_table(X, metadata=metadata)
        if check and (self.design_ is None or self._apart):
            validate_data(self, X, reset=False, skip_check_array=True)
        return self._rows(table, preserved=False)

    def _collected(self, rows: Rows, function: Any) -> NDArray[Any]:
        return np.concatenate(list(rows.map(function)))

    # ---- telling -----------------------------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the features, which are also the names of the residuals."""
        check_is_fitted(self)
        return np.asarray(self.features_, dtype=object)

    def tidy(self) -> pd.DataFrame:
        """Return a table of coefficients: feature, term, estimate, std_error, statistic, p_value, partial_r2.

        See Also
        --------
        residmix.inference.coefficient_table : The formulas.
        """
        check_is_fitted(self)
        names = () if self.design_ is None else self.design_.column_names
        return inference.coefficient_table(self.fit_, names, list(self.features_))

    def summary(self) -> None:
        """Print what the metadata explain, term by term, and which features they explain most."""
        check_is_fitted(self)
        names = () if self.design_ is None else self.design_.column_names
        terms = () if self.design_ is None else self.design_.terms
        print(
            inference.summary_text(
                self.fit_,
                [(term.name, term.columns, term.preserved) for term in terms],
                names,
                [str(name) for name in self.features_],
            )
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _same_coding(one: Design | None, two: Design | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.same_coding(two)


def _warn(
    fit: LinearFit, names: Sequence[str], features: NDArray[Any], correlations: NDArray[np.float64], *, penalised: bool
) -> None:
    if fit.aliased and not penalised:
        told = "; ".join(
            f"{names[column]!r} is determined by "
            + " and ".join("the intercept" if k < 0 else repr(names[k]) for k in partners)
            for column, partners in list(fit.aliased.items())[:8]
        )
        more = "" if len(fit.aliased) <= 8 else f"; and {len(fit.aliased) - 8} more"
        warnings.warn(
            f"{len(fit.aliased)} of {len(names)} design columns are aliased: {told}{more}. Residuals don't depend on "
            "it; coefficients are those of least norm",
            CollinearityWarning,
            stacklevel=4,
        )
    if len(correlations) and correlations[0] > _ENTANGLED:
        warnings.warn(
            f"what is removed and what is preserved are nearly collinear: canonical correlation {correlations[0]:.4f}; "
            "their effects can hardly be told apart, so the residuals depend on the noise of few rows",
            CollinearityWarning,
            stacklevel=4,
        )
    known = fit.count > 0
    if not known.all():
        absent = ", ".join(str(name) for name in np.asarray(features)[~known][:8])
        warnings.warn(f"features without a single value, left as they are: {absent}", DesignWarning, stacklevel=4)
    count = float(fit.count[known].min(initial=np.inf))
    columns = float(fit.degrees.max(initial=0.0))
    if columns > 0 and columns + 1 > count / 2:
        left = max(count - 1 - columns, 0.0) / max(count, 1.0)
        warnings.warn(
            f"{columns:.4g} design columns for {count:.0f} rows: in-sample residuals keep only {left:.0%} of the "
            "noise's variance, and those of new rows are inflated; use fewer columns or a penalty (alpha)",
            DesignWarning,
            stacklevel=4,
        )
