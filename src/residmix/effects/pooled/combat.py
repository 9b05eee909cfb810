"""Batch effects pooled over features by empirical Bayes: ComBat as moments in, coefficients out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term, find_term
from residmix.effects.effect import Effect, need_dense
from residmix.effects.marginal import marginal, recoded
from residmix.effects.pooled.by_level import Still, tell_still
from residmix.effects.pooled.covariates import BesideCovariates, beside_covariates
from residmix.effects.pooled.free import free_posterior
from residmix.effects.pooled.levels import Levels
from residmix.effects.pooled.posterior import posterior, posterior_shift
from residmix.effects.pooled.robust import robust_sums
from residmix.effects.pooled.together import cells_of, pooled_together
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.scale import Scale, tell_too_light
from residmix.effects.spread.terms import spread_terms
from residmix.effects.unseen.batches import Frozen
from residmix.errors import did_you_mean, note
from residmix.moments.by_level import ByLevel, Grouping, residual_sums
from residmix.moments.linear import LinearMoments
from residmix.rows.rows import Rows
from residmix.rows.threads import one_blas_thread

__all__ = ["EmpiricalBayes"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EmpiricalBayes:
    r"""Effects of one factor's levels, shrunk by empirical Bayes towards their mean over the features.

    With the residuals' pooled variance :math:`s_j^2 = \sum_i e_{ij}^2 / n` and the level effects
    :math:`\hat\gamma_{kj}`, :math:`\hat\delta_{kj}` (shift and variance ratio, in units of :math:`s_j`), the priors
    :math:`\gamma_{kj} \sim N(\bar\gamma_k, \tau_k^2)` and :math:`\delta_{kj} \sim` InverseGamma have parameters
    estimated by moments over the features. Shift and spread are replaced by their posterior means.

    Attributes
    ----------
    mean : Effect
        How the effects are estimated before.
    spread : bool
        Whether to shrink and remove the levels' effect on the variance too. If not, all variance ratios are 1.
    factors : tuple of (str, str), optional
        Terms whose effects are pooled, each with its `kind`. Default: the only factor removed.
    kind : {"eb", "eb-one-row", "eb-nonparametric", "eb-robust"}
        "eb": the priors above. "eb-one-row": every level as if it had a single row, as sva's ``mean.only`` does.
        "eb-nonparametric": the empirical distribution over the other features as prior
        (:func:`residmix.effects.pooled.free.free_posterior`). "eb-robust": the priors above, with medians and median
        absolute deviations by level, which are robust to outliers.
    formula : str, optional
        With `spread`, the terms that the spread depends on, the pooled ones among them. With covariates as well this is
        ComBatLS (:class:`residmix.effects.pooled.covariates.BesideCovariates`).
    reference : level, optional
        A level whose rows aren't changed: shifts are relative to it, and s_j is the standard deviation within it.

    Notes
    -----
    With `spread` this is the parametric ComBat, and by "eb-nonparametric" ``par.prior=FALSE``. ``sva::ComBat`` stops
    when no estimate moves by more than 1e-4 of itself; here the fixed point is iterated to full precision. Without
    `spread`, the posterior mean of a level counts its :math:`n_k` rows, except with "eb-one-row".

    Each of several factors is pooled as if it were the only one, with the others as covariates. Their variance ratios
    multiply, and are estimated together. After a fit with random effects, s_j is the standard deviation of their noise,
    by restricted maximum likelihood, as in longitudinal ComBat (Beer et al., NeuroImage 220, 2020).

    References
    ----------
    Johnson, Li and Rabinovic, "Adjusting batch effects in microarray expression data using empirical Bayes
    methods", Biostatistics 8 (2007), section 3.
    """

    mean: Effect
    spread: bool = False
    factors: tuple[tuple[str, str], ...] | None = None
    kind: str = "eb"
    reference: Any = None
    formula: str | None = None

    exact_loo: ClassVar[bool] = False

    @property
    def columns_up_to(self) -> int:
        return self.mean.columns_up_to

    def check(self, design: Design) -> None:
        """Raise ValueError unless these are removed factors, one of which has the reference level."""
        self.mean.check(design)
        if not design.terms:
            raise ValueError("shrinkage='eb' needs a factor to shrink; give a formula, or metadata=")
        need_dense(design)
        terms = self._terms(design)
        if self.reference is not None:
            if len(terms) > 1:
                raise ValueError(
                    f"reference= works with one pooled factor, but {len(terms)} are pooled; name one in "
                    "shrinkage=, or leave reference= out"
                )
            _place(design, terms[0], self.reference)
        if self._covariates(design) and len(terms) > 1:
            raise ValueError(
                f"scale={self.formula!r} with covariates works with one factor pooled by shrinkage='eb', but "
                f"{len(terms)} are pooled; name one in shrinkage=, or use scale=True"
            )
        if len(terms) > 1 and self.spread and any(kind == "eb-robust" for _, kind in self._named(terms)):
            raise ValueError(
                "shrinkage='eb-robust' with scale=True works with one pooled factor; name one, or use 'eb'"
            )

    def merges(self, design: Design) -> bool:
        terms = self._terms(design)
        robust = any(kind == "eb-robust" for _, kind in self._named(terms))
        many = len(terms) > 1 and cells_of(self._groupings(design)) is None
        return self.mean.merges(design) and not robust and not (self.spread and (many or self._covariates(design)))

    def equations(self, design: Design) -> ByLevel:
        groupings = self._groupings(design)
        cells = cells_of(groupings) if self.spread and len(groupings) > 1 else None
        return ByLevel(groupings if cells is None else (*groupings, cells))

    def _groupings(self, design: Design) -> tuple[Grouping, ...]:
        return tuple(Grouping(term.name, term.columns, design.level_rows(term)) for term in self._terms(design))

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        found = self.mean.estimate(moments, design, features, rows)
        groupings, terms = self._groupings(design), self._terms(design)
        sums = [residual_sums(moments, grouping, found.applied) for grouping in groupings]
        still = {
            term.name: Still(term.columns, group.coded, own[3])
            for term, group, own in zip(terms, groupings, sums, strict=True)
        }
        tell_still(still, design, features, "as in sva, they are not adjusted at any level")
        left = np.any([own[3].any(axis=0) for own in sums], axis=0)
        noise = next((effects.noise for effects in found.random.values()), None)
        reference = None if self.reference is None else _place(design, terms[0], self.reference)
        if reference is not None:
            self._look_at_reference(float(sums[0][0][reference].max()), sums[0][2][reference])
        for f, (_, kind) in enumerate(self._named(terms)):
            if kind == "eb-robust":
                assert rows is not None, "medians aren't in the moments"
                sums[f] = (*robust_sums(rows, found.everything(), groupings[f]), sums[f][3])
        coef = self._beside_interactions(found, design, moments.linear, terms)
        levels = [
            Levels.of(own[:3], group.coded, coef[group.columns], left, noise, reference)
            for group, own in zip(groupings, sums, strict=True)
        ]
        beside = None
        if covariates := self._covariates(design):
            assert rows is not None, "spreads that depend on covariates aren't in the moments"
            ((_, kind),), (group,), (own,) = self._named(terms), groupings, levels
            beside = beside_covariates(
                rows, found, design, [terms[0], *covariates], terms[0], still[group.name], left, features, sums[0][:3]
            )
            levels = [beside.levels(own, coef[group.columns], rows, found.everything(), group, kind)]
        linear = moments.linear
        if self.spread and all(np.all(own.n < 2) for own in levels) and np.all(linear.weight < linear.count):
            tell_too_light(float(linear.weight.max()), int(linear.count.max()))
        usable = np.all([own.usable(features) for own in levels], axis=0)
        posterior = [
            self._posterior(own, usable, kind) for own, (_, kind) in zip(levels, self._named(terms), strict=True)
        ]
        if self.spread and len(terms) > 1:
            each = [partial(self._posterior, kind=kind) for _, kind in self._named(terms)]
            cells = cells_of(groupings)
            posterior = pooled_together(found, moments, levels, groupings, cells, posterior, each, usable, rows)
        return self._applied(found, design, terms, levels, usable, posterior, beside, coef)

    @staticmethod
    def _beside_interactions(
        found: LinearRemoval, design: Design, linear: LinearMoments, terms: Sequence[Term]
    ) -> Array:
        """Return the coefficients (q, d), of factors averaged over what they interact with."""
        fit, changed = found.applied, marginal(design, linear, terms)
        return fit.coef if changed is None else recoded(fit.coef, changed)

    def _look_at_reference(self, weight: float, squares: Array) -> None:
        """Raise if the reference has a single row; tell of one that has none yet, as at the other sites of several."""
        if weight == 0:
            note(
                "reference",
                f"no row has the level reference={self.reference!r}, so batches are adjusted to their own mean until "
                "rows of it are added",
                reference=str(self.reference),
            )
        elif not squares.any():
            raise ValueError(
                f"reference={self.reference!r} has rows of weight {weight:g}, within which no feature varies; their "
                "standard deviation is the unit of the other batches' effects, so name a level with more rows"
            )

    def _terms(self, design: Design) -> list[Term]:
        if self.factors is None:
            return [_only_factor(design)]
        terms = [find_term(design.terms, name, "shrinkage") for name, _ in self.factors]
        for term in terms:
            if term.kind != "factor" or term.preserved:
                what = "preserved" if term.preserved else term.kind
                raise ValueError(f"shrinkage: 'eb' needs a factor that is removed, but {term.name!r} is {what}")
        return terms

    def _covariates(self, design: Design) -> list[Term]:
        """Return the terms beside the pooled ones that the spread depends on."""
        if self.formula is None:
            return []
        named, pooled = spread_terms(self.formula, design), self._terms(design)
        lacking = [term.name for term in pooled if term not in named]
        if lacking:
            raise ValueError(
                f"scale={self.formula!r} must name what shrinkage='eb' pools: add {' and '.join(map(repr, lacking))}"
            )
        return [term for term in named if term not in pooled]

    def _named(self, terms: list[Term]) -> tuple[tuple[str, str], ...]:
        return self.factors or ((terms[0].name, self.kind),)

    @one_blas_thread()  # for so few levels others would only wait
    def _applied(
        self,
        found: LinearRemoval,
        design: Design,
        terms: list[Term],
        levels: list[Levels],
        usable: NDArray[np.bool_],
        posterior: list[tuple[Array, Array]],
        beside: BesideCovariates | None,
        coef: Array,
    ) -> LinearRemoval:
        """Return the fit with the posterior means in place of the effects, which `coef` (q, d) are."""
        fit, width = found.applied, design.n_removed
        added, constant = np.zeros_like(fit.coef), np.zeros_like(fit.constant)
        scale_of, scale_at = np.zeros((width, len(constant))), np.zeros_like(constant)
        pooled = {}
        for term, own, (gamma, delta), (_, kind) in zip(terms, levels, posterior, self._named(terms), strict=True):
            at = term.columns
            change, log_sd = np.zeros_like(own.shift), np.zeros_like(own.shift)
            if len(own.coded) > 1:
                change[:, usable] = gamma * own.pooled[usable] - own.shift[:, usable] + own.means[:, usable]
                log_sd[:, usable] = 0.5 * np.log(delta)
            to_columns = np.linalg.pinv(np.column_stack([own.coded, np.ones(len(own.coded))]))
            of_level, spread = to_columns @ change, to_columns @ log_sd
            # a factor without effect leaves the mean of the rows where it is
            mean = (fit.origin_a + fit.offset_a)[fit.group, at]
            whole = np.where(own.left, -fit.coef[at], of_level[:-1])
            at_zero = np.where(own.left, np.einsum("dk,kd->d", mean, fit.coef[at]), of_level[-1])
            added[at] += whole
            constant += at_zero + fit.origin_a[at] @ whole
            scale_of[at] += spread[:-1]
            scale_at += spread[-1]
            average = design.known_level_rows(term).mean(axis=0)
            pooled[term.name] = Frozen(
                np.where(usable, own.pooled, 0.0),
                average @ (coef[at] + whole) + at_zero - own.grand,
                spread[-1] + average @ spread[:-1] if self.spread else None,
                kind == "eb-one-row",
                own.left,
                kind,
            )
        shrunk = replace(fit, coef=fit.coef + added, constant=fit.constant + constant)
        scale = Scale(np.zeros(width), scale_at, scale_of) if self.spread else None
        found = replace(found, shrunk=shrunk, scale=scale, pooled=pooled)
        if beside is None:
            return found
        ((gamma, _),), (own,) = posterior, levels
        shifts = np.zeros_like(own.shift)
        if len(own.coded) > 1:
            shifts[:, usable] = gamma * own.pooled[usable]
        stretched = beside.stretched(own, terms[0].columns, shifts)
        return replace(found, scale=beside.with_levels(scale_at, scale_of), stretched=stretched)

    def _posterior(self, levels: Levels, usable: NDArray[np.bool_], kind: str) -> tuple[Array, Array]:
        """Return shifts and variance ratios (K, usable) given those of all features."""
        free = kind == "eb-nonparametric"
        n, pooled = levels.n[:, usable], levels.pooled[usable]
        gamma = levels.shift[:, usable] / pooled
        if self.spread:
            gamma, delta = (free_posterior if free else posterior)(
                gamma, levels.squares[:, usable] / np.maximum(n - 1, 1) / pooled**2, n
            )
        else:
            delta = np.ones_like(gamma)
            if free:
                gamma, _ = free_posterior(gamma, delta, n)
            else:
                gamma = posterior_shift(gamma, delta, np.sign(n) if kind == "eb-one-row" else n)
        if levels.reference is not None:
            gamma[levels.reference], delta[levels.reference] = 0.0, 1.0
        return gamma, delta


def _place(design: Design, factor: Term, level: Any) -> int:
    """Return which of a factor's levels `level` is."""
    known = design.levels_of(design.column_of(factor))
    assert known is not None
    if level not in known.levels:
        raise ValueError(
            f"reference={level!r} is not a level of {factor.name}{did_you_mean(str(level), known.labels)}; there "
            f"are: {', '.join(map(repr, known.levels[:12]))}"
        )
    return known.levels.index(level)


def _only_factor(design: Design) -> Term:
    removed = [term for term in design.terms if not term.preserved]
    factors = [term for term in removed if term.kind == "factor"]
    if len(factors) != 1:
        raise ValueError(
            f"shrinkage='eb' shrinks the effects of one factor, but the formula removes {len(factors)} "
            f"({', '.join(term.name for term in removed) or 'nothing'}); remove one factor, or name it, as in "
            "shrinkage={'batch': 'eb'}"
        )
    return factors[0]
