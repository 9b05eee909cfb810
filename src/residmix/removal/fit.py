"""How a Residualizer is fitted: design, moments, coefficients, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.adjust import adjusted, of_features, rescaled
from residmix.effects.blup import RandomEffects, shrunk_fit
from residmix.effects.later_batches import Frozen, LaterBatches, LevelTotals
from residmix.effects.level_priors import removed_factors, spread_prior, term_prior
from residmix.effects.new_levels import NewLevels, refuse_new_levels, with_new_levels
from residmix.effects.penalty import ridge_penalty
from residmix.effects.scale import Scale
from residmix.errors import DesignWarning, warn
from residmix.moments import inference
from residmix.moments.absorbed import FactorMoments, merge_factor_moments
from residmix.moments.affine import WithEffects
from residmix.moments.linear import LinearMoments, linear_block_rows, merge_moments
from residmix.moments.scatter import check_design_moments
from residmix.moments.solve import LinearFit, fit_linear, solve_moments
from residmix.moments.solve_absorbed import FactorFit, features_with_gaps, fit_factors, solve_factors
from residmix.removal.leakage import LOOKED_AT_ROWS, looked_at, looked_at_features, warn_of_leakage
from residmix.removal.messages import warn_of_fit
from residmix.removal.nesting import nested_factors, owners
from residmix.removal.nuisance import fit_nuisance
from residmix.removal.transformer import MetadataTransformer
from residmix.rows.block import Block
from residmix.rows.progress import watched
from residmix.rows.rows import Rows
from residmix.rows.sampled import Sample, SampledRows
from residmix.sources.open import as_table
from residmix.sources.table import Table
from residmix.validation import check_choice

__all__ = ["ResidualFit"]

Array = NDArray[np.float64]

# As a number of rows: a model that leaks is told of once.
_NEVER_AGAIN = 1 << 62


def _as_it_is(block: Block) -> Block:
    return block


class ResidualFit(MetadataTransformer):
    """What `residmix.Residualizer` does behind its methods; its parameters and attributes are documented there."""

    alpha: float | dict[str, float]
    scale: bool
    shrinkage: str | dict[str, str] | None
    reference: Any
    residuals: str
    estimator: Any
    cv: Any
    on_unknown: str
    missing: str
    new_levels_: dict[str, NewLevels | LaterBatches]
    design_columns_: list[str]
    _frozen: Frozen | None
    _sample: Sample
    _last_look: int

    @property
    def _pools(self) -> bool:
        """Whether effects are pooled over features."""
        return isinstance(self.shrinkage, str) and self.shrinkage in ("eb", "eb-one-row")

    def _priors(self) -> dict[str, NewLevels | LaterBatches]:
        """Return what is expected of unseen levels of every factor that is removed."""
        design = self.design_
        if design is None:
            return {}
        if self._frozen is not None:
            totals = LevelTotals.none(len(self.features_))
            return {term.name: LaterBatches(self._frozen, totals) for term in removed_factors(design)}
        found: dict[str, NewLevels | LaterBatches] = {}
        for term in removed_factors(design):
            prior = term_prior(design, term, self.fit_, self.moments_, self.random_effects_.get(term.name))
            spread = None
            if self.scale_ is not None:
                spread = spread_prior(design, term, self.fit_, self.moments_, self.scale_)
            found[term.name] = NewLevels.none(prior, spread)
        return found

    def _refuse_moments_alone(self) -> None:
        if any(levels.labels for levels in getattr(self, "new_levels_", {}).values()):
            raise ValueError("partial_fit and merge would leave the levels behind that adapt has learned; adapt last")
        for name in ("estimator", "scale", "shrinkage"):
            value = getattr(self, name)
            if value is not None and value is not False and not isinstance(value, dict):
                raise ValueError(
                    f"partial_fit and merge work from moments alone, but {name}={value!r} needs the rows again; use fit"
                )

    def _fit(
        self, X: Any, metadata: Any, sample_weight: Any, *, quiet: bool = False, allow_nan: bool = True
    ) -> tuple[Rows, NDArray[Any] | None]:
        """Fit; return the training rows, and their residuals where they come with the fit."""
        table = as_table(X, metadata=metadata)
        self._start(X, table, sample_weight)
        rows = self._rows(table, sample_weight, allow_nan=allow_nan)
        with watched(rows, quiet=quiet) as seen:
            # moments of features with gaps are sound numbers: unless gaps are allowed, each block must be looked at
            return rows, self._solve(seen if allow_nan else seen.mapped(_as_it_is))

    def _warn_of_target(self, y: Any) -> None:
        """Warn if there is a target but no metadata, which were perhaps given in its place."""
        if y is not None and self.design_ is None:
            warn(
                "there is no metadata, so only the means are taken out; the second argument of fit is a target, which "
                "is ignored: give metadata= or a formula",
                DesignWarning,
            )

    def _start(self, X: Any, table: Table, sample_weight: Any) -> None:
        """Check parameters, learn the design, settle the features."""
        check_choice("on_unknown", self.on_unknown, ("error", "mean", "shrink"))
        check_choice("missing", self.missing, ("error", "mean", "indicator"))
        check_choice("scale", self.scale, (False, True))
        if not isinstance(self.shrinkage, dict):
            check_choice("shrinkage", self.shrinkage, (None, "eb", "eb-one-row"))
        elif self.alpha != 0:
            raise ValueError("alpha and shrinkage={...: 'blup'} are two penalties; give one of them")
        if self.reference is not None and not self._pools:
            raise ValueError("reference= is the batch that shrinkage='eb' adjusts the others to; give shrinkage='eb'")
        if self.shrinkage == "eb-one-row" and self.scale:
            raise ValueError("shrinkage='eb-one-row' is for means only, since one row has no spread; leave out scale=")
        check_choice("residuals", self.residuals, ("in-sample", "loo", "cross-fitted"))
        if self.estimator is not None and (self.scale or self.shrinkage is not None or self.alpha != 0):
            raise ValueError("scale, shrinkage and alpha belong to least squares; with estimator= leave them out")
        if self.residuals == "loo" and (self.scale or self.shrinkage or self.estimator is not None):
            raise ValueError(
                "leave-one-out residuals are exact for least squares of the mean only; with scale=, shrinkage= or "
                "estimator= use residuals='cross-fitted'"
            )
        # Least squares absorbs factors of many levels; a regressor wants to see their columns.
        options = {} if self.estimator is None else {"absorb_above": 20_000}
        if isinstance(self.shrinkage, dict):
            options = {"absorb_above": 2_000}
        if self.on_unknown == "shrink":
            refuse_new_levels(self.estimator, "on_unknown='shrink'")
            if self._pools:
                raise ValueError(
                    "on_unknown='shrink' needs effects that weren't pooled over features; with shrinkage='eb' use "
                    "on_unknown='mean', and adapt to a new level with some of its rows"
                )
        known_only = "mean" if self.on_unknown == "shrink" else self.on_unknown
        self._learn(X, table, sample_weight, on_unknown=known_only, missing=self.missing, **options)
        if self.design_ is not None and self.design_.factors and (self.alpha != 0 or self.residuals == "loo"):
            raise ValueError(
                f"alpha and residuals='loo' need a column per level, but {self.design_.factors[0].name!r} has "
                f"{len(self.design_.factors[0].levels)} levels; use residuals='cross-fitted', or group its levels"
            )
        if self._pools and self.design_ is None:
            raise ValueError("shrinkage='eb' needs a factor to shrink: give a formula, or metadata=")

    def _rows(
        self,
        table: Table,
        sample_weight: Any = None,
        *,
        preserved: bool = True,
        design: Design | None = None,
        allow_nan: bool = True,
    ) -> Rows:
        design = self.design_ if design is None else design
        q = 0 if design is None else len(design.column_names)
        return table.rows(
            self._columns(table),
            design=design,
            weight=sample_weight,
            preserved=preserved,
            block_rows=linear_block_rows(len(self.features_), q),
            allow_nan=allow_nan,
        )

    def _solve(self, rows: Rows) -> NDArray[Any] | None:
        design = self.design_
        if self.estimator is not None:
            p, k = (0, 0) if design is None else (design.n_removed, design.n_preserved)
            fitted = fit_nuisance(self.estimator, rows, p, k, self.cv)
            self.estimator_, self.preserved_coef_, residual, self.r2_ = fitted
            self.new_levels_ = {}
            if p:
                index, some = looked_at(rows.n_rows), looked_at_features(rows.n_features)
                sample, names = rows.take(index), self.features_[some].tolist()
                assert sample.design is not None
                assert design is not None
                X, left = sample.X[:, some], residual[index][:, some]
                columns = design.column_names[:p]
                warn_of_leakage(X, left, sample.design, columns, names, least_squares=False)
            return residual
        self._sample, self._last_look = Sample(), 0
        fit, moments = self._sampled_least_squares(rows)
        applied, scale, self._frozen = self._shrunk(fit, moments), None, None
        if design is not None and (self.scale or self._pools):
            pooled = None if isinstance(self.shrinkage, dict) else self.shrinkage
            applied, scale, self._frozen = adjusted(
                rows, applied, design, scale=self.scale, shrinkage=pooled, reference=self.reference
            )
        self._set(fit, moments, applied, scale)
        self._look_for_leakage()
        return None

    def _sampled_least_squares(self, rows: Rows) -> tuple[LinearFit, LinearMoments | FactorMoments]:
        """Fit, and keep a sample of the rows: one set aside on the way, since files needn't be read again for it."""
        sampled = SampledRows(rows, looked_at(rows.n_rows), looked_at_features(rows.n_features))
        found = self._least_squares(sampled)
        if self.design_ is not None and (self.design_.n_removed or self.design_.factors):
            own = Sample.of(sampled.sample(), rows.n_rows, seed=self._sample.n_rows)
            self._sample = self._sample.merged(own, LOOKED_AT_ROWS)
        return found

    def _look_for_leakage(self) -> None:
        """Warn if residuals of the sample give metadata back; look again only when the rows have doubled."""
        sample = self._sample.block
        if sample is None or self._sample.n_rows < 2 * self._last_look:
            return
        some = looked_at_features(len(self.features_))
        remove = of_features(self._map(seen_in_fit=True), some)
        residual = remove(sample)
        assert sample.design is not None
        effects = {}
        if isinstance(remove, WithEffects):
            effects = {name: own[at] for name, own, at in zip(self.effects_, remove.effects, sample.codes, strict=True)}
        told = warn_of_leakage(
            sample.X,
            residual,
            sample.design,
            self.design_columns_,
            self.features_[some].tolist(),
            effects=effects,
        )
        self._last_look = _NEVER_AGAIN if told else self._sample.n_rows

    def _least_squares(self, rows: Rows) -> tuple[LinearFit, LinearMoments | FactorMoments]:
        if self.design_ is not None and self.design_.factors:
            sizes = tuple(len(factor.levels) for factor in self.design_.factors)
            return fit_factors(rows, sizes, self._check_moments)
        return fit_linear(
            rows, penalty=ridge_penalty(self.design_, self.alpha), parts=self._parts, check=self._check_moments
        )

    @property
    def _parts(self) -> tuple[Term, ...]:
        """The terms in order, which decides where they are aliased."""
        return () if self.design_ is None else self.design_.terms

    def _check_moments(self, moments: LinearMoments) -> None:
        if self.design_ is not None:
            check_design_moments(self.design_.column_names, moments)

    def _shrunk(self, fit: LinearFit, moments: LinearMoments | FactorMoments) -> LinearFit:
        self.random_effects_: dict[str, RandomEffects] = {}
        if isinstance(self.shrinkage, dict):
            fit, self.random_effects_ = shrunk_fit(moments, fit, self.design_, self.shrinkage)
        return fit

    def _merged(self, moments: Any) -> LinearMoments | FactorMoments:
        if isinstance(self.moments_, FactorMoments):
            gaps = features_with_gaps(self.moments_) | features_with_gaps(moments)
            if gaps.any():
                assert self.design_ is not None
                factor = self.design_.factors[0]
                raise ValueError(
                    f"partial_fit and merge can't go on where features have missing values "
                    f"({', '.join(map(repr, self.features_[gaps][:5].tolist()))}) beside a factor without columns "
                    f"({factor.name!r}, {len(factor.levels)} levels); fit all rows at once, or fill the gaps"
                )
            return merge_factor_moments(self.moments_, moments)
        return merge_moments(self.moments_, moments)

    def _update(self, moments: LinearMoments | FactorMoments) -> None:
        self._check_moments(moments.linear if isinstance(moments, FactorMoments) else moments)
        if isinstance(moments, FactorMoments):
            fit: LinearFit = solve_factors(moments)
        else:
            fit = solve_moments(moments, penalty=ridge_penalty(self.design_, self.alpha), parts=self._parts)
        self._set(fit, moments, self._shrunk(fit, moments), None)

    def _set(
        self, fit: LinearFit, moments: LinearMoments | FactorMoments, applied: LinearFit, scale: Scale | None
    ) -> None:
        design = self.design_
        names = () if design is None else design.column_names
        p = 0 if design is None else design.n_removed
        self.fit_, self.moments_, self.scale_ = fit, moments, scale
        self._applied = applied
        self.new_levels_ = self._priors() if self.on_unknown == "shrink" else {}
        affine = applied.affine(p)
        self.coef_, self.preserved_coef_ = applied.coef[:p], applied.coef[p:]
        self.intercept_ = affine.intercept
        self.design_columns_ = list(names[:p])
        self.rank_, self.condition_number_ = fit.rank, fit.condition_number
        self.r2_ = inference.explained(fit)
        linear = moments.linear if isinstance(moments, FactorMoments) else moments
        effects = fit.effects if isinstance(fit, FactorFit) else ()
        names_absorbed = () if design is None else (factor.name for factor in design.factors)
        self.effects_ = dict(zip(names_absorbed, effects, strict=True))
        self.canonical_correlations_ = np.empty(0)
        if p < len(names) and isinstance(fit, FactorFit):
            self.canonical_correlations_ = inference.correlations_beside_factors(
                linear.s_aa[0][p:, p:], fit.covariance[0][p:, p:]
            )
        elif 0 < p < len(names):
            self.canonical_correlations_ = inference.canonical_correlations(linear.s_aa[0], p)
        warn_of_fit(
            fit,
            names,
            self.features_,
            self.canonical_correlations_,
            penalised=self.alpha != 0 or bool(self.random_effects_),
            owners=self._owners(),
            nested=self._nested(),
        )

    def _owners(self) -> dict[int, str]:
        """Return what determines the aliased columns that absorbed factors determine."""
        if self.design_ is None or not (isinstance(self.fit_, FactorFit) and isinstance(self.moments_, FactorMoments)):
            return {}
        return owners(self.fit_, self.moments_, self.design_.factors)

    def _nested(self) -> list[str]:
        """Return what is to be said of absorbed factors that determine levels of each other."""
        if self.design_ is None or not (isinstance(self.fit_, FactorFit) and isinstance(self.moments_, FactorMoments)):
            return []
        return nested_factors(self.fit_, self.moments_, self.design_.factors)

    def _map(self, sign: int = -1, *, seen_in_fit: bool = False) -> Any:
        """Return the picklable function of blocks that takes the effects out, or with sign 1 puts them back.

        Blocks of rows `seen_in_fit` have no codes of levels that fit didn't see.
        """
        if self.estimator is not None:
            return replace(self.estimator_, sign=sign)
        affine = self._applied.affine(len(self.coef_))
        spreads: tuple[Array, ...] = ()
        if self.new_levels_ and not seen_in_fit:
            shrink = self.on_unknown == "shrink"
            new = self.new_levels_.values()
            affine = with_new_levels(affine, [levels.effects(shrink=shrink) for levels in new])
            changes = (levels.spreads(shrink=shrink) for levels in new)
            spreads = tuple(change for change in changes if change is not None)
        affine = replace(affine, sign=sign)
        return affine if self.scale_ is None else rescaled(affine, self._applied, self.scale_, spreads)

    def _new_rows(self, X: Any, metadata: Any, check: bool = True) -> Rows:
        if self.design_ is None:
            self._check_metadata(X, metadata)
        if self.design_ is None or not self.design_.columns:
            metadata = None
        elif self._apart and metadata is None and not isinstance(X, Table):
            raise ValueError("metadata is needed: this Residualizer was fitted with metadata=; pass it here too")
        table = as_table(X, metadata=metadata)
        if check:
            self._check_columns(X)
        design = self.design_
        if design is not None and self.new_levels_:
            design = design.following({name: levels.labels for name, levels in self.new_levels_.items()})
        return self._rows(table, preserved=self.estimator is None and self.scale_ is not None, design=design)
