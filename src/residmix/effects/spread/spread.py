"""Effects on the spread, estimated after those on the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.effect import Effect, need_dense
from residmix.effects.marginal import recoded, shared
from residmix.effects.mean.blup import Blup
from residmix.effects.pooled.by_level import Still, still_levels, tell_still
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.scale import Scale, tell_too_light
from residmix.effects.spread.terms import log_variances, spread_terms
from residmix.effects.unmeasured.combinations import empty, with_sums
from residmix.moments.by_level import ByLevel, Grouping, residual_sums
from residmix.moments.equations import Equations
from residmix.rows.rows import Rows

__all__ = ["Spread"]


@dataclass(frozen=True)
class Spread:
    r"""Log variances that are linear in the design (:func:`residmix.effects.spread.scale.fit_log_variances`).

    Smooth terms are smooth and random effects random here as well, each with its own smoothness or variance
    (:func:`residmix.effects.spread.curved.fit_curved_log_variances`).

    Attributes
    ----------
    mean : Effect
        How the effects on the mean are estimated.
    formula : str, optional
        The terms that the spread depends on. Default: all.
    """

    mean: Effect
    formula: str | None = None

    exact_loo: ClassVar[bool] = False

    @property
    def columns_up_to(self) -> int:
        return self.mean.columns_up_to

    def check(self, design: Design) -> None:
        self.mean.check(design)
        need_dense(design)
        self._terms(design)

    def merges(self, design: Design) -> bool:
        """Tell whether variances by level are enough: with one factor with fixed effects as the only term."""
        return self.mean.merges(design) and _only_a_factor(design) and not isinstance(self.mean, Blup)

    def equations(self, design: Design) -> Equations:
        if not self.merges(design):
            return self.mean.equations(design)
        (term,) = design.terms
        return ByLevel((Grouping(term.name, term.columns, design.level_rows(term)),))

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        found = self.mean.estimate(moments, design, features, rows)
        if design.n_removed == 0:
            return found
        if rows is None or (_only_a_factor(design) and not found.random):
            return replace(found, scale=self._of_levels(found, moments, design, features))
        still = still_levels(rows, design)
        tell_still(still, design, features, _ONLY_MEAN)
        told: dict[str, Any] = {"still": tuple(still.values()), "features": features}
        terms = self._terms(design)
        variances = log_variances(rows, found, design, terms, tuple(still.values()))
        if (held := shared(terms, found.moments.linear)) is not None:
            sd = variances.sd[:, None]
            variances = replace(variances, removed=sd * recoded(variances.coef[1:] / sd, held))
        scale = variances.scale(np.arange(design.n_removed), design.n_removed, **told)
        if combinations := empty(design, found.fit, moments):
            coef, moved = with_sums(combinations, scale.coef, scale.origin)
            scale = replace(scale, coef=coef, intercept=scale.intercept + moved)
        return replace(found, scale=scale)

    def _terms(self, design: Design) -> list[Term]:
        return list(design.terms) if self.formula is None else spread_terms(self.formula, design)

    def _of_levels(self, found: LinearRemoval, moments: Any, design: Design, features: Sequence[Any]) -> Scale:
        r"""Return the sample variances :math:`\sum (x - \bar x_k)^2 / (n_k - 1)` of the levels as a log-linear model.

        They maximise the restricted likelihood of `fit_log_variances`, with weights for the numbers of rows. A level
        with one row has no variance and gets the average of the others.
        """
        grouping = self.equations(design).groupings[0]  # type: ignore[attr-defined]
        n, _, squares, mask = residual_sums(moments, grouping, found.applied)
        still = Still(grouping.columns, grouping.coded, mask)
        tell_still({grouping.name: still}, design, features, _ONLY_MEAN)
        known = (n > 1) & ~mask & (squares > 0)
        if np.all(n <= 1) and moments.linear.weight.max() < moments.linear.count.max():
            tell_too_light(float(moments.linear.weight.max()), int(moments.linear.count.max()))
        log_sd = 0.5 * np.log(np.where(known, squares, 1.0) / np.where(known, n - 1, 1.0))
        log_sd = np.where(known, log_sd, np.sum(log_sd * known, axis=0) / np.maximum(known.sum(axis=0), 1))
        left = np.sum(np.where(known, squares * np.exp(-2 * log_sd), 0.0), axis=0)
        total = np.sum(np.where(known, squares, 0.0), axis=0)
        use = total > 0
        log_sd += 0.5 * np.log(np.where(use, left, 1.0) / np.where(use, total, 1.0))
        log_sd[:, ~use] = 0.0
        of_level = np.linalg.pinv(np.column_stack([grouping.coded, np.ones(len(log_sd))])) @ log_sd
        return Scale(np.zeros(design.n_removed), of_level[-1], of_level[:-1], (still,) if mask.any() else ())


_ONLY_MEAN = "only the mean is adjusted there, not the spread"


def _only_a_factor(design: Design) -> bool:
    return len(design.terms) == 1 and design.terms[0].kind == "factor" and not design.terms[0].preserved
