r"""Least squares with absorbed factors: effects of thousands of levels without columns.

The largest factor is eliminated exactly, since its block of the normal equations is diagonal (for one factor this is
the theorem of Frisch, Waugh and Lovell: a regression of deviations from level means). What remains is the Schur
complement :math:`S = G_{RR} - G_{R1} D_1^{-1} G_{1R}` for the other factors' levels, the dense columns and the
intercept: solved by a Cholesky factorisation with pivoting, which reveals the rank, or beyond a few thousand rows by
conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.moments.absorbed.sums import FactorMoments, FactorStep, factor_block_rows, merge_factor_moments
from residmix.moments.absorbed.system import System, system_of
from residmix.moments.affine import WithEffects
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments, made_of_numbers
from residmix.moments.solving.aliased import Part
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.rows.threads import one_blas_thread

__all__ = [
    "FactorFit",
    "features_with_gaps",
    "fit_factor_moments",
    "fit_factors",
    "fold_factors",
    "solve_factors",
]

Array = NDArray[np.float64]

# Where less than this is left, digits were lost, and a pass over the residuals brings them back.
_WEAK = 1e-4


@dataclass
class FactorFit(LinearFit):
    """A linear fit with absorbed factors.

    Attributes
    ----------
    effects : tuple of ndarray (L, d)
        Effects of the levels of each absorbed factor, with weighted mean 0: deviations from the average row. NaN where
        a feature has no rows of the level.
    level_weight : tuple of ndarray (L,)
        Sum of the weights of each level.
    nested : dict of int to tuple of int
        For each factor, its levels that the other factors determine, beyond the one that always is.
    """

    effects: tuple[Array, ...] = ()
    level_weight: tuple[Array, ...] = ()
    nested: dict[int, tuple[int, ...]] | None = None

    def affine(self, n_removed: int | None = None) -> WithEffects:
        """Return the map to the residual, which removes all factors, the first `n_removed` columns and the mean."""
        plain = super().affine(n_removed)
        effects = tuple(np.vstack([e, _level_mean(e)]) for e in self.effects)
        return WithEffects(plain.origin_x, plain.origin_a, plain.coef, plain.constant, plain.sign, effects)


def _level_mean(effects: Array) -> Array:
    """Return the mean over the levels that a feature has rows of, (d,); 0 if there are none."""
    total = effects.sum(axis=0)
    if np.isfinite(total).all():
        return np.asarray(total / max(len(effects), 1))
    known = ~np.isnan(effects)
    return np.asarray(np.where(known, effects, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def fit_factors(
    rows: Rows,
    sizes: tuple[int, ...],
    check: Callable[[LinearMoments], None] | None = None,
    parts: Sequence[Part] = (),
) -> tuple[FactorFit, FactorMoments]:
    """Fit by least squares on the dense columns and the absorbed factors of `rows`.

    Parameters
    ----------
    rows : Rows
        With codes; -1 isn't allowed.
    sizes : tuple of int
        Numbers of levels of the factors.
    check : callable, optional
        Looks at the moments before anything is solved.
    parts : sequence of Part, optional
        The terms, in order, which decides how shared effects are divided (see `residmix.moments.solving.aliased`).
        Default: the factors, then each column by itself.
    """
    moments = fold_factors(rows, sizes)
    if check is not None:
        check(moments.linear)
    return fit_factor_moments(moments, rows, parts), moments


def fold_factors(rows: Rows, sizes: tuple[int, ...]) -> FactorMoments:
    """Return the moments of all rows, by one ordered fold."""
    rows = rows.with_block_rows(factor_block_rows(sizes, rows.n_features))
    return fold(rows, FactorStep(sizes), merge_factor_moments, lambda found: made_of_numbers(found.linear))


def fit_factor_moments(moments: FactorMoments, rows: Rows, parts: Sequence[Part] = ()) -> FactorFit:
    """Fit from the moments of `rows`, which are read again where accuracy asks for it."""
    rows = rows.with_block_rows(factor_block_rows(moments.sizes, rows.n_features))
    if features_with_gaps(moments).any():
        return _by_feature(rows, moments.sizes, parts)
    fit, system = _solved(moments, parts)
    dwarfed = fit.rss < 1e-6 * fit.tss
    if system.weakest < _WEAK or dwarfed.any():
        fit = _refined(rows, fit, system)
    return fit


def features_with_gaps(moments: FactorMoments) -> NDArray[np.bool_]:
    """Return a mask of the features with missing values (d,), which sums by level don't support."""
    return np.asarray(np.any([~np.isfinite(s.x).all(axis=0) for s in moments.sums], axis=0))


def solve_factors(moments: FactorMoments, parts: Sequence[Part] = ()) -> FactorFit:
    """Fit from moments alone, as :func:`residmix.moments.solving.solve.solve_moments` does."""
    return _solved(moments, parts)[0]


def _solved(moments: FactorMoments, parts: Sequence[Part]) -> tuple[FactorFit, System]:
    linear = moments.linear
    moments.sums = [s.spread(size) for s, size in zip(moments.sums, moments.sizes, strict=True)]
    with one_blas_thread():
        system = system_of(moments, parts)
        x = [s.x - s.weight[:, None] * linear.offset_x for s in moments.sums]
        scaled = linear.s_ax / system.scale[:, None]
        rest = np.vstack([*(x[f] for f in system.others), scaled])
        first, unknowns = system.settled_unknowns(x[system.first], rest)
        explained = np.sum(first * x[system.first], axis=0) + np.sum(unknowns * rest, axis=0)
        return _assembled(system, first, unknowns, np.maximum(linear.s_xx - explained, 0.0)), system


def _assembled(system: System, first: Array, unknowns: Array, rss: Array) -> FactorFit:
    moments, linear = system.moments, system.moments.linear
    q, d = linear.s_ax.shape
    effects: list[Array] = [np.empty(0)] * len(moments.sizes)
    effects[system.first] = first
    for f, start, stop in zip(system.others, system.starts, system.starts[1:], strict=False):
        effects[f] = unknowns[start:stop]
    constant = linear.offset_x.copy()
    total = float(linear.weight[0]) or 1.0
    for f, s in enumerate(moments.sums):
        mean = s.weight @ effects[f] / total
        effects[f] = np.where(s.weight[:, None] > 0, effects[f] - mean, np.nan)
        constant += mean
    columns = np.arange(system.starts[-1], system.starts[-1] + q)
    coef = unknowns[columns] / system.scale[:, None]
    covariance = system.covariance() / system.scale[:, None] / system.scale if q else np.empty((0, 0))
    null, unknown = np.zeros((q, 0)), np.zeros((1, q + 1), dtype=bool)
    if q and not system.kept.all():
        unknown[0, :-1] = system.aliases.unknown | (np.diagonal(system.scatter) == 0)
        left, values, _ = np.linalg.svd(system.aliases.of_columns(), full_matrices=False)
        null = left[:, values > 1e-6]
    rank = int(np.count_nonzero(moments.sums[system.first].weight > 0)) - 1 + int(np.count_nonzero(system.kept))
    nested = {}
    for f, start, stop in zip(system.others, system.starts, system.starts[1:], strict=False):
        lost = np.flatnonzero(~system.kept[start:stop] & (moments.sums[f].weight > 0))
        if len(lost) > 1:
            nested[f] = tuple(lost[1:].tolist())
    aliased: dict[int, tuple[int, ...]] = {k: () for k in range(q) if not system.kept[columns[k]]}
    return FactorFit(
        coef=coef,
        constant=constant - linear.offset_a[0] @ coef,
        origin_a=linear.origin_a,
        origin_x=linear.origin_x,
        offset_a=linear.offset_a,
        group=np.zeros(d, dtype=np.int64),
        covariance=covariance[None],
        rank=rank,
        condition_number=system.condition,
        degrees=np.array([float(rank)]),
        aliased=aliased,
        rss=rss,
        tss=linear.s_xx,
        count=np.full(d, linear.count[0]),
        weight=np.full(d, linear.weight[0]),
        scale=system.scale[None],
        null=(null,),
        unknown=unknown,
        effects=tuple(effects),
        level_weight=tuple(s.weight for s in moments.sums),
        nested=nested,
    )


@dataclass(frozen=True)
class _Left:
    """Block with the residual in place of the features."""

    affine: WithEffects

    def __call__(self, block: Block) -> Block:
        return replace(block, X=self.affine(replace(block, X=np.asarray(block.X, dtype=np.float64))))


def _refined(rows: Rows, fit: FactorFit, system: System) -> FactorFit:
    """Fit what the residuals still hold of the design, and add it."""
    step = FactorStep(system.moments.sizes)
    affine = fit.affine()
    # levels without rows: what weighs nothing must not be NaN
    affine = replace(affine, effects=tuple(np.nan_to_num(effects) for effects in affine.effects))
    left = fold(rows.mapped(_Left(affine)), step, merge_factor_moments)
    more, _ = _solved(left, system.parts)
    return replace(
        fit,
        coef=fit.coef + more.coef,
        constant=fit.constant + more.origin_x + more.constant + (fit.origin_a - more.origin_a) @ more.coef,
        effects=tuple(a + b for a, b in zip(fit.effects, more.effects, strict=True)),
        rss=more.rss,
    )


@dataclass(frozen=True)
class _One:
    """Block of one feature; a row that it lacks has weight 0."""

    feature: int

    def __call__(self, block: Block) -> Block:
        x = np.asarray(block.X[:, [self.feature]], dtype=np.float64)
        have = ~np.isnan(x[:, 0])
        weight = have.astype(np.float64) if block.weight is None else np.where(have, block.weight, 0.0)
        return replace(block, X=np.where(have[:, None], x, 0.0), weight=weight)


def _by_feature(rows: Rows, sizes: tuple[int, ...], parts: Sequence[Part]) -> FactorFit:
    """Fit each feature on the rows that it has, one after the other."""
    fits = [fit_factors(rows.mapped(_One(j)), sizes, parts=parts)[0] for j in range(rows.n_features)]
    seen = [fit for fit in fits if fit.weight[0] > 0] or fits
    origin_a = fits[0].origin_a
    return FactorFit(
        coef=np.hstack([fit.coef for fit in fits]),
        constant=np.concatenate([fit.constant + (origin_a - fit.origin_a) @ fit.coef for fit in fits]),
        origin_a=origin_a,
        origin_x=np.concatenate([fit.origin_x for fit in fits]),
        offset_a=np.vstack([fit.offset_a + (fit.origin_a - origin_a) for fit in fits]),
        group=np.arange(len(fits)),
        covariance=np.concatenate([fit.covariance for fit in fits]),
        rank=min(fit.rank for fit in seen),
        condition_number=max(fit.condition_number for fit in seen),
        degrees=np.concatenate([fit.degrees for fit in fits]),
        aliased={column: () for fit in seen for column in fit.aliased},
        rss=np.concatenate([fit.rss for fit in fits]),
        tss=np.concatenate([fit.tss for fit in fits]),
        count=np.concatenate([fit.count for fit in fits]),
        weight=np.concatenate([fit.weight for fit in fits]),
        scale=np.concatenate([fit.scale for fit in fits if fit.scale is not None]),
        null=tuple(null for fit in fits for null in fit.null),
        unknown=np.concatenate([fit.unknown for fit in fits if fit.unknown is not None]),
        effects=tuple(np.hstack(own) for own in zip(*(fit.effects for fit in fits), strict=True)),
        level_weight=tuple(np.max(own, axis=0) for own in zip(*(fit.level_weight for fit in fits), strict=True)),
        nested={f: lost for fit in seen for f, lost in (fit.nested or {}).items()},
    )
