"""Levels pooled beside covariates that the spread depends on as well: ComBatLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.pooled.by_level import Still, level_sums, merge_sums
from residmix.effects.pooled.levels import Levels
from residmix.effects.pooled.robust import robust_sums
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.rescale import Stretched
from residmix.effects.spread.scale import Location, Scale
from residmix.effects.spread.terms import columns_of, log_variances
from residmix.moments.by_level import Grouping, level_of
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["BesideCovariates", "beside_covariates"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BesideCovariates:
    r"""The spread as a function c(a) of covariates, and the levels' estimates in units of it.

    Where the spread depends on covariates, rows are compared after division by it: with :math:`\mu(a)` the mean of the
    rows at the covariates, :math:`y = (x - \mu(a)) / c(a)` has the mean :math:`\gamma_k` and the variance
    :math:`\delta_k s^2` at level k. These are pooled as ComBat pools those of x. So a level's shift is
    :math:`c(a)\,\gamma_k`, larger where rows vary more.

    Attributes
    ----------
    whole : Scale
        c, of all covariates, the preserved ones included. The levels have an effect on the spread of their own in its
        fit, so that covariates aren't blamed for it.
    removed : Scale
        The part of it that is removed: of covariates that aren't preserved.

    References
    ----------
    Gardner, Chen, Bethlehem, Seidlitz and others, "ComBatLS: a location- and scale-preserving method for multi-site
    image harmonization", Human Brain Mapping 46 (2025).
    """

    whole: Scale
    removed: Scale

    def levels(self, plain: Levels, coef: Array, rows: Rows, location: Location, group: Grouping, kind: str) -> Levels:
        """Return the levels' estimates in units of c, given those in units of x, and their coefficients (w, d)."""
        effect = group.coded @ coef
        own = plain.coded @ coef
        total = np.where(plain.n.sum(axis=0) > 0, plain.n.sum(axis=0), 1.0)
        grand = np.sum(plain.n * own, axis=0) / total if plain.reference is None else own[plain.reference]
        view = partial(_in_units, location, effect - grand, self.whole, group)
        if kind == "eb-robust":
            sums: Any = robust_sums(rows, view, group)
        else:
            sums = fold(rows, partial(_sums, view, group), merge_sums)
        present = sums[0].max(axis=1) > 0
        n, shift, squares = (part[present] for part in sums)
        pooled = plain.pooled
        if plain.reference is not None:
            pooled = np.sqrt(squares[plain.reference] / np.maximum(n[plain.reference], 1.0))
        elif kind == "eb-robust":
            pooled = np.sqrt(squares.sum(axis=0) / total)
        return replace(
            plain, n=n, squares=squares, means=shift - (own - grand), shift=shift, grand=grand, pooled=pooled
        )

    def stretched(self, levels: Levels, columns: slice, shifts: Array) -> Stretched:
        """Return the shifts (K, d) of the levels as proportional to c."""
        of_level = np.linalg.pinv(np.column_stack([levels.coded, np.ones(len(levels.coded))])) @ shifts
        return Stretched(columns, of_level[:-1], of_level[-1], self.whole)

    def with_levels(self, at_zero: Array, of_levels: Array) -> Scale:
        """Return the spread that is removed: of covariates, and of the levels, ``at_zero + a @ of_levels``."""
        origin = self.removed.origin
        return Scale(origin, self.removed.intercept + at_zero + origin @ of_levels, self.removed.coef + of_levels)


def beside_covariates(
    rows: Rows,
    found: LinearRemoval,
    design: Design,
    terms: Sequence[Term],
    pooled: Term,
    still: Still,
    left: NDArray[np.bool_],
    features: Sequence[Any],
    sums: tuple[Array, ...],
) -> BesideCovariates:
    """Fit the spread to the terms, the pooled one among them, and return what depends on the others.

    `sums` are weight, mean and squares of residuals by the pooled factor's levels: their variances are a start.
    """
    seen = (still,) if still.mask.any() else ()
    n, _, squares = sums
    known = (n >= 2) & (squares > 0) & ~still.mask
    all_squares, of_all = np.sum(squares * known, axis=0), np.sum(n * known, axis=0)
    average = np.where(of_all > 0, all_squares, 1.0) / np.where(of_all > 0, of_all, 1.0)
    log_variance = np.log(np.where(known, squares, average) / np.where(known, n - 1.0, 1.0))
    start = (still.columns, still.coded, log_variance)
    fitted = log_variances(rows, found, design, terms, seen, start)
    others = [term for term in terms if term is not pooled]
    gone = columns_of([term for term in others if not term.preserved])
    parts = [(columns_of(others), len(design.column_names)), (gone, design.n_removed)]
    whole, removed = fitted.scales(parts, features=features)
    return BesideCovariates(_without(whole, left), _without(removed, left))


def _without(scale: Scale, left: NDArray[np.bool_]) -> Scale:
    """Return the same, with no effect on features that aren't adjusted."""
    return replace(scale, intercept=np.where(left, 0.0, scale.intercept), coef=np.where(left, 0.0, scale.coef))


def _in_units(location: Location, effect: Array, spread: Scale, grouping: Grouping, block: Block) -> Array:
    """Return y (b, d): residuals with the effects of their levels, in units of the spread."""
    own = level_of(block.design, grouping.columns, grouping.coded)
    units = np.array(location(block))
    units += effect[own]
    units /= spread.factor(block.design)
    return units


def _sums(view: Location, grouping: Grouping, block: Block) -> tuple[Array, Array, Array]:
    return block.by_tile(partial(_sums_of, view, grouping), merge_sums)


def _sums_of(view: Location, grouping: Grouping, block: Block) -> tuple[Array, Array, Array]:
    exact = replace(block, X=np.asarray(block.X, dtype=np.float64))
    own = level_of(block.design, grouping.columns, grouping.coded)
    return level_sums(view(exact), own, len(grouping.coded), block.weight)
