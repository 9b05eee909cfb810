"""The terms that the spread depends on, and the fit of its log variances to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.formula.expressions import Column, Expression
from residmix.design.formula.parser import parse_formula
from residmix.design.terms import Term, find_term
from residmix.effects.pooled.by_level import Still
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.curved import fit_curved_log_variances
from residmix.effects.spread.scale import LogVariances, fit_log_variances
from residmix.moments.solving.aliased import least_contributions
from residmix.rows.rows import Rows

__all__ = ["columns_of", "log_variances", "spread_terms"]

# Kinds of terms that formulas write as columns, or as C(column).
_PLAIN = ("numeric", "factor", "interaction")


def spread_terms(formula: str, design: Design) -> list[Term]:
    """Return the terms of a design that a formula names, in the order of the design.

    Raises
    ------
    ValueError
        For a term that isn't in the design, or if none of them is removed.
    """
    named = [_term(design, factors, formula) for factors in parse_formula(formula)]
    if all(term.preserved for term in named):
        raise ValueError(
            f"scale={formula!r} names no term that is removed, so no spread would be adjusted; name one, or leave "
            "scale= out"
        )
    return [term for term in design.terms if term in named]


def _term(design: Design, factors: Sequence[Expression], formula: str) -> Term:
    """Return the term of the design that these factors make, however its factors are written: site is C(site)."""
    labels = sorted(factor.label for factor in factors)
    plain = all(isinstance(factor, Column) or getattr(factor, "function", None) == "C" for factor in factors)
    columns = {name for factor in factors for name in factor.columns()}
    same = [term for term in design.terms if sorted(term.name.split(":")) == labels] or [
        term for term in design.terms if plain and set(term.variables) == columns and term.kind in _PLAIN
    ]
    return same[0] if len(same) == 1 else find_term(design.terms, ":".join(factor.label for factor in factors), "scale")


def columns_of(terms: Sequence[Term]) -> NDArray[np.intp]:
    """Return the design columns of some terms."""
    return np.concatenate([np.empty(0, np.intp), *(np.arange(own.columns.start, own.columns.stop) for own in terms)])


def log_variances(
    rows: Rows,
    found: LinearRemoval,
    design: Design,
    terms: Sequence[Term],
    still: tuple[Still, ...],
    start: tuple[slice, NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> LogVariances:
    """Return the log variances of what effects on the mean leave, as they depend on some terms.

    Smooth terms are smooth and random effects random here as well. The others may `start` from log variances of a
    factor's levels.
    """
    random = [term for term in terms if term.name in found.random]
    sloped = [term.name for term in random if term.kind == "interaction"]
    if sloped:
        raise ValueError(
            f"the spread can't depend on random slopes, but {sloped[0]!r} has them; name the terms that it depends on, "
            "as scale='site'"
        )
    seen = (rows, found.everything(), found.moments.linear, found.fit.group)
    if random or any(term.kind == "smooth" for term in terms):
        return fit_curved_log_variances(*seen, design, random, terms=terms, still=still)
    return _settled(fit_log_variances(*seen, columns=columns_of(terms), still=still, start=start), found, terms)


def _settled(variances: LogVariances, found: LinearRemoval, terms: Sequence[Term]) -> LogVariances:
    """Return the same log variances with the smallest contributions of aliased terms, as effects on the mean have."""
    if not any(null.shape[1] for null in found.fit.null):
        return variances
    columns, coef = columns_of(terms), variances.coef.copy()
    ends = np.cumsum([0, *(term.columns.stop - term.columns.start for term in terms)]).tolist()
    parts = [replace(term, columns=slice(*pair)) for term, pair in zip(terms, pairwise(ends), strict=True)]
    coef[1 + columns] = least_contributions(variances.scatter[np.ix_(columns, columns)], parts) @ coef[1 + columns]
    return replace(variances, coef=coef)
