"""Attributes, tables and warnings of a fitted Residualizer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from residmix.design.design import Design
from residmix.effects.mean.bands import Test, smooth_table, term_tests
from residmix.effects.mean.regressor import Nuisance, RegressorRemoval
from residmix.effects.random.predicted import RandomEffects
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.scale import Scale
from residmix.effects.tables import effect_table, level_table, moments_table, share_table
from residmix.effects.unmeasured.combinations import empty, explained
from residmix.effects.unmeasured.levels import unmeasured
from residmix.effects.unseen.batches import LaterBatches
from residmix.effects.unseen.levels import NewLevels
from residmix.effects.unseen.priors import removed_factors
from residmix.moments import inference
from residmix.moments.cells import Cell, LevelsOf, smallest_cell
from residmix.moments.linear import Moments
from residmix.moments.solving.solve import LinearFit
from residmix.removal.telling.messages import (
    aliases,
    combinations_told,
    least_squares_tests,
    note_of_absent,
    summary_text,
    warn_of_combinations,
    warn_of_fit,
    warn_of_unmeasured,
)
from residmix.removal.telling.nesting import nested_factors, owners
from residmix.removal.transformer import MetadataTransformer
from residmix.removal.watch import Watch
from residmix.surfaces import Shown, Summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Told"]

Array = NDArray[np.float64]


class Told(Shown, MetadataTransformer):
    """Fitted attributes and tables of :class:`residmix.Residualizer`."""

    alpha: float | dict[str, float]
    estimator: Any
    on_unknown: str
    new_levels_: dict[str, NewLevels | LaterBatches]
    _found: Any  # LinearRemoval or RegressorRemoval
    _watch: Watch

    # ---- attributes --------------------------------------------------------------------------------------------------

    @property
    def coef_(self) -> Array:
        """Coefficients of the removed design columns, (p, d).

        If columns are collinear, each term gets the smallest contribution that is compatible with the terms before it
        (:mod:`residmix.moments.solving.aliased`).
        """
        return self._linear.coef

    @property
    def preserved_coef_(self) -> Array:
        """Coefficients of the preserved design columns, (k, d)."""
        return np.asarray(self._found.preserved_coef)

    @property
    def intercept_(self) -> Array:
        """Intercept (d,): the residual is ``x - intercept_ - a(m) @ coef_``."""
        return self._linear.intercept

    @property
    def design_columns_(self) -> list[str]:
        """Names of the p removed columns."""
        self._linear  # noqa: B018 - a regressor has none
        return list(self.design_.column_names[: self.design_.n_removed])

    @property
    def rank_(self) -> int:
        """Rank of the centred design."""
        return self._linear.fit.rank

    @property
    def condition_number_(self) -> float:
        """Condition number of the standardised design."""
        return self._linear.fit.condition_number

    @property
    def r2_(self) -> Array:
        """R2 of each feature, preserved terms included, (d,)."""
        return np.asarray(self._found.r2)

    @property
    def canonical_correlations_(self) -> Array:
        """Canonical correlations of removed and preserved columns; empty if nothing is preserved."""
        return self._linear.correlations

    @property
    def random_effects_(self) -> dict[str, RandomEffects]:
        """Random effects and variance ratios by term, with ``shrinkage={"site": "blup"}``."""
        return self._linear.random

    @property
    def scale_(self) -> Scale | None:
        """Effects on the log standard deviation, if they are removed."""
        return self._linear.scale

    @property
    def estimator_(self) -> Nuisance:
        """The fitted regressor, if `estimator` is given."""
        if isinstance(self._found, RegressorRemoval):
            return self._found.nuisance
        raise AttributeError("estimator_ exists only with estimator=; the effects of this model are in coef_")

    @property
    def effects_(self) -> dict[str, Array]:
        """Effects (L, d) of each factor with more than 200 levels, which has no columns in the design.

        Their weighted mean is 0. They have the order of ``design_.factors[i].levels``.
        """
        names = (factor.name for factor in self.design_.factors)
        return dict(zip(names, self._linear.fit.effects, strict=True))

    @property
    def fit_(self) -> LinearFit:
        """Results of least squares, before shrinkage."""
        return self._linear.fit

    @property
    def edf_(self) -> pd.DataFrame:
        """Effective degrees of freedom of the curves: a row per feature, a column per curve. A straight line has 1."""
        return self._of_curves("edf")

    @property
    def smoothness_(self) -> pd.DataFrame:
        r"""Smoothing parameters :math:`\lambda` (variables in units of their range): a row per feature, a column per
        curve."""
        return self._of_curves("smoothness")

    def _of_curves(self, what: str) -> pd.DataFrame:
        import pandas as pd

        if (smooth := self._linear.smooth) is None:
            raise AttributeError("there are no smooth terms; a formula has one with s(age)")
        return pd.DataFrame(getattr(smooth, what).T, index=[str(f) for f in self.features_], columns=smooth.names)

    @property
    def applied_(self) -> LinearFit:
        """The fit whose effects are removed: after shrinkage and smoothing if there are any, else `fit_`."""
        return self._linear.applied

    @property
    def saved_degrees(self) -> float:
        """Columns of removed curves less their effective degrees of freedom, summed over the features."""
        smooth, curves = self._linear.smooth, self.design_.curves
        if smooth is None:
            return 0
        removed = [t for t, curve in enumerate(curves) if curve.columns[0] < self.design_.n_removed]
        return float(sum((len(curves[t].columns) - smooth.edf[t]).sum() for t in removed))

    @property
    def _fit_that_counts(self) -> LinearFit:
        """The fit with residuals and degrees of freedom of the smooth terms as they were fitted."""
        smooth, fit = self._linear.smooth, self.fit_
        if smooth is None:
            return fit
        degrees = fit.count - 1.0 - smooth.residual_degrees
        # splines without penalty may be aliased, which a penalty settles
        bent = {k for curve in self.design_.curves for k in curve.columns}
        aliased = {k: by for k, by in fit.aliased.items() if k not in bent and not bent.intersection(by)}
        return replace(fit, rss=smooth.rss, degrees=degrees, group=np.arange(len(degrees)), aliased=aliased)

    @property
    def moments_(self) -> Moments:
        """Weighted second moments of the rows, which merge with those of others."""
        return self._linear.moments

    @property
    def _linear(self) -> LinearRemoval:
        if isinstance(self._found, LinearRemoval):
            return self._found
        raise AttributeError("with estimator= there are no coefficients; use estimator_")

    def __sklearn_is_fitted__(self) -> bool:
        return "_found" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ---- tables ------------------------------------------------------------------------------------------------------

    def tidy(self) -> pd.DataFrame:
        """Return a table of coefficients: feature, term, estimate, std_error, statistic, p_value, partial_r2.

        With `shrinkage`, the estimate is the shrunk one, and a last column, unshrunk, holds that of least squares.
        Standard errors and tests are those of least squares.

        With smooth terms there are two more columns, edf and reference_df. A curve has one row in place of one for each
        of its columns: the statistic is F, with reference_df and the residual degrees of freedom, and there is neither
        estimate nor standard error. The other standard errors take the smoothness as known.

        See Also
        --------
        residmix.moments.inference.coefficient_table : The formulas.
        residmix.effects.mean.bands.term_tests : Those of curves.
        """
        self._need_coefficients()
        if self._linear.smooth is not None:
            return smooth_table(self._linear, self.design_, [str(name) for name in self.features_])
        names = self.design_.column_names
        return inference.coefficient_table(self.fit_, names, list(self.features_), self._linear.shrunk)

    def summary(self) -> Summary:
        """Return a text that shows how much each term explains, and which features are affected most."""
        self._need_coefficients()
        return Summary(
            summary_text(
                self._fit_that_counts,
                self.term_tests(),
                self.design_.column_names,
                [str(name) for name in self.features_],
                self._doubts(),
            )
        )

    def _doubts(self) -> list[str]:
        """Return lines of what can't be estimated."""
        design, fit, moments = self.design_, self.fit_, self.moments_
        found = [combinations_told(own, self.features_, self._n_values) for own in empty(design, fit, moments)]
        told = [f"not estimated: {own[0]}" for own in found if own is not None]
        if explained(design, fit, moments):
            return told
        named = aliases(fit, design.column_names, owners(fit, moments, design.factors))
        return [*told, *(f"aliased: {one}" for one in named)]

    @property
    def _n_values(self) -> int:
        """Number of features that have values."""
        return int(np.count_nonzero(self.fit_.count > 0))

    def term_tests(self) -> list[Test]:
        """Return the test of each term, and of each curve of a term that has several."""
        if self._linear.smooth is not None:
            return term_tests(self._linear, self.design_)
        return least_squares_tests(self.fit_, self.design_.terms)

    def variance_shares(self) -> pd.DataFrame:
        """Return the share of each feature's variance that each term takes: feature, term, share.

        The share is the covariance of the term's fitted values with the feature, over the feature's variance. The
        shares of all terms and of the residual, called (residual), add up to one. With correlated terms a share can be
        negative.
        """
        self._need_coefficients()
        return share_table(self._linear, self.design_, list(self.features_))

    def level_table(self, term: str) -> pd.DataFrame:
        """Return a table of the levels of a removed factor: level, rows, shift, spread, distance, odd.

        All values are from before the removal. "shift" is the root mean square of the level's effects over the
        features, in residual standard deviations. "spread" is the geometric mean over the features of the level's
        standard deviation over the pooled one. "distance" is the Kullback-Leibler divergence of the level's normal
        distributions from the pooled ones, in nats per feature. "odd" tells whether the shift (upwards) or the log
        spread is an outlier: more than 3.5 robust standard deviations (1.4826 times the median absolute deviation) from
        the median of the levels. With three levels or fewer none is odd. Spread and distance are NaN unless the fit has
        `scale` or pools this factor, since other fits don't estimate the spreads. With `covariance` two more columns
        hold the divergence of the level's shrunk covariance from the pooled one, before and after, in nats per
        direction.

        See Also
        --------
        residmix.effects.tables.level_table : The formulas.
        """
        self._need_coefficients()
        return level_table(self._linear, self.design_, term)

    def effect(self, name: str, at: Any = None) -> pd.DataFrame:
        """Return the effect of a metadata column at some of its values: at, feature, estimate, lower, upper.

        The effect is relative to the mean of the rows, with the other metadata fixed. lower and upper are pointwise 95
        % confidence limits of least squares. The column may be preserved. Default of `at`: the levels of a factor, or
        50 values along a curve. For curves by another column, the table has one more column, curve, with the levels.
        `name` may also be a term or one of its curves, as ``"s(age, by=sex)"`` or ``"s(age, by=sex)[F]"``. Confidence
        bands of curves take the smoothness as known; they cover 95 % on average along a curve.
        """
        self._need_coefficients()
        return effect_table(self._linear, self.design_, list(self.features_), name, at)

    def what_leaves(self) -> pd.DataFrame:
        """Return a table of the sums of training data in a saved file of this model: what, arrays, shape, numbers.

        No single row is stored. But the sums of a level with one row reveal that row: see `smallest_cell`.
        """
        self._need_coefficients()
        return moments_table(self._linear, self.design_)

    def smallest_cell(self) -> Cell:
        """Return the level, or pair of levels of two factors, with the fewest rows, and the number of its rows."""
        self._need_coefficients()
        factors = [
            LevelsOf(term.variables[0], term.columns, self.design_.level_rows(term), tuple(map(str, term.levels)))
            for term in self.design_.terms
            if term.kind == "factor"
        ]
        return smallest_cell(self.moments_.linear, factors)

    def _need_coefficients(self) -> None:
        check_is_fitted(self)
        if self.estimator is not None:
            raise ValueError("with estimator= there are no coefficients; r2_ holds the cross-fitted R2")

    def _warn(self) -> None:
        """Warn of problems of a fit of linear effects."""
        design, fit, moments = self.design_, self._fit_that_counts, self.moments_
        lost = unmeasured(design, self.fit_, moments)
        absent = [(one, (one.lacking == (fit.count > 0)).all(axis=1)) for one in lost]
        # what no row has is told below, by its name
        no_rows = {k for one, levels in absent if levels.any() for k in one.columns}
        told = {} if explained(design, self.fit_, moments) else fit.aliased
        fit = replace(fit, aliased={k: by for k, by in told.items() if k not in no_rows})
        warn_of_fit(
            fit,
            design.column_names,
            self.features_,
            self.canonical_correlations_,
            penalised=self.alpha != 0 or bool(self.random_effects_),
            owners=owners(fit, moments, design.factors),
            nested=nested_factors(fit, moments, design.factors),
        )
        for one, levels in absent:
            note_of_absent(one, levels)
        if not self.random_effects_:  # those of a level without rows are expected to be 0
            for one, levels in absent:
                warn_of_unmeasured(one, one.lacking & ~levels[:, None], self.features_, self.on_unknown)
            for crossed in empty(design, self.fit_, moments):
                warn_of_combinations(crossed, self.features_, self._n_values, self.on_unknown)

    # ---- files -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _from_older(attributes: dict[str, Any]) -> dict[str, Any]:
        """Convert attributes of an older model file to today's."""
        old = MetadataTransformer._from_older(attributes)
        if "r2_" not in old:
            return old
        found: LinearRemoval | RegressorRemoval
        if "estimator_" in old:
            found = RegressorRemoval(old["estimator_"], old["preserved_coef_"], old["r2_"])
        else:
            adjusted = old["shrinkage"] is not None
            found = LinearRemoval(
                n_removed=len(old["coef_"]),
                moments=old["moments_"],
                fit=old["fit_"],
                shrunk=old["_applied"] if adjusted else None,
                scale=old["scale_"],
                random=old["random_effects_"],
                pooled={} if old.get("_frozen") is None else {_removed_factor(old["design_"]): old["_frozen"]},
            )
        kept = {name: value for name, value in old.items() if not isinstance(getattr(Told, name, None), property)}
        for name in ("_applied", "_frozen", "_sample", "_last_look"):
            kept.pop(name, None)
        return kept | {"_found": found, "_watch": Watch()}


def _removed_factor(design: Design) -> str:
    """Return the only factor that is removed."""
    (term,) = removed_factors(design)
    return term.name
