"""Random effects of factors, shrunk by the ratio of noise variance to the variance of the levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term, find_term
from residmix.effects.marginal import marginal, own_moments, recoded
from residmix.effects.mean.least_squares import LeastSquares
from residmix.effects.random.crossed import crossed_effects
from residmix.effects.random.one import random_effects
from residmix.effects.random.slopes import sloped_effects
from residmix.effects.removal import LinearRemoval
from residmix.moments.equations import Equations
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments
from residmix.moments.solving.aliased import least_contributions
from residmix.rows.rows import Rows

__all__ = ["Blup"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Blup:
    r"""Best linear unbiased prediction: :math:`u \sim N(0, \tau_f^2 I)` for the levels of each factor named.

    Each feature has variance ratios of its own, by restricted maximum likelihood
    (:func:`residmix.effects.random.one.random_effects`, :func:`residmix.effects.random.crossed.crossed_effects`).

    Attributes
    ----------
    factors : tuple of str
        Terms, or the metadata columns that one term uses. A product of a number with one of them, as ``time:subject``,
        has random slopes (:func:`residmix.effects.random.slopes.sloped_effects`).
    """

    factors: tuple[str, ...]

    exact_loo: ClassVar[bool] = False
    columns_up_to: ClassVar[int] = 2_000

    def check(self, design: Design) -> None:
        """Raise ValueError unless these are factors with columns in the design."""
        self.terms(design)
        self.lines(design)

    def merges(self, design: Design) -> bool:
        return True

    def equations(self, design: Design) -> Equations:
        return LeastSquares().equations(design)

    def estimate(
        self, moments: Any, design: Design, features: Sequence[Any], rows: Rows | None = None
    ) -> LinearRemoval:
        found = LeastSquares().estimate(moments, design, features, rows)
        terms = self.terms(design)
        columns = [(term.columns, design.level_rows(term)) for term in terms]
        lines, linear, fit = self.lines(design), moments.linear, found.fit
        terms += [product for _, product in lines]
        changed = marginal(design, linear, terms)
        if changed is not None:
            linear, fit = own_moments(linear, changed), _with(fit, changed, linear)
        if lines:
            slopes = [(number.columns.start, product.columns) for number, product in lines]
            shrunk, several = sloped_effects(linear, fit, columns[0], slopes)
        elif len(columns) == 1:
            shrunk, one = random_effects(linear, fit, *columns[0])
            several = [one]
        else:
            shrunk, several = crossed_effects(linear, fit, columns)
        if changed is not None:
            shrunk = _with(shrunk, np.asarray(np.linalg.inv(changed), np.float64), moments.linear)
        names = [term.name for term in terms]
        if any(null.shape[1] for null in found.fit.null):
            shrunk = _settled(shrunk, moments.linear, [term for term in design.terms if term not in terms])
        return replace(found, shrunk=shrunk, random=dict(zip(names, several, strict=True)))

    def terms(self, design: Design) -> list[Term]:
        """Return the terms of the factors."""
        named = [(name, find_term(design.terms, name, "shrinkage")) for name in self.factors]
        named = [(name, term) for name, term in named if term.kind != "interaction"]
        for name, term in named:
            if term.kind == "absorbed" or design.factors:
                raise ValueError(
                    f"shrinkage='blup' needs a column per level, but {design.factors[0].name!r} has too many levels "
                    f"({len(design.factors[0].levels)}); merge levels"
                )
            if term.kind != "factor":
                raise ValueError(
                    f"shrinkage: 'blup' needs a factor, but {name!r} is {term.kind}; name a factor, or "
                    "leave shrinkage out"
                )
        return [term for _, term in named]

    def lines(self, design: Design) -> list[tuple[Term, Term]]:
        """Return the terms of random slopes: the number, and its product with the factor."""
        found = []
        for name in self.factors:
            term = find_term(design.terms, name, "shrinkage")
            if term.kind != "interaction":
                continue
            factors = self.terms(design)
            numbers = [own for own in design.terms if own.kind == "numeric" and own.name in term.name.split(":")]
            if (
                len(factors) != 1
                or len(numbers) != 1
                or set(term.variables)
                != {
                    *factors[0].variables,
                    *numbers[0].variables,
                }
            ):
                raise ValueError(
                    f"shrinkage: 'blup' for {term.name!r} means random slopes, which need random intercepts of one "
                    "factor and the number's own effect; write preserve='time + subject + time:subject' and shrinkage="
                    "{'subject': 'blup', 'time:subject': 'blup'}"
                )
            found.append((numbers[0], term))
        return found


def _with(fit: LinearFit, changed: Array, moments: LinearMoments) -> LinearFit:
    """Return the fit with other coefficients: `changed` (g, q, q) times those of each feature."""
    coef = recoded(fit.coef, changed)
    offset = np.einsum("dq,qd->d", np.broadcast_to(moments.offset_a, coef.T.shape), coef)
    return replace(fit, coef=coef, constant=moments.offset_x - offset)


def _settled(fit: LinearFit, moments: LinearMoments, fixed: list[Term]) -> LinearFit:
    """Return the fit with the smallest contributions of the fixed effects, where their columns are aliased."""
    columns = np.concatenate([np.empty(0, np.int64), *(np.arange(t.columns.start, t.columns.stop) for t in fixed)])
    ends = np.cumsum([0, *(term.columns.stop - term.columns.start for term in fixed)]).tolist()
    parts = [replace(term, columns=slice(*pair)) for term, pair in zip(fixed, pairwise(ends), strict=True)]
    coef = fit.coef.copy()
    for g, scatter in enumerate(moments.s_aa):
        own = np.arange(coef.shape[1]) if len(moments.s_aa) == 1 else np.array([g])
        at = np.ix_(columns, own)
        coef[at] = least_contributions(scatter[np.ix_(columns, columns)], parts) @ coef[at]
    offset = np.einsum("dq,qd->d", np.broadcast_to(moments.offset_a, coef.T.shape), coef)
    return replace(fit, coef=coef, constant=moments.offset_x - offset)
