r"""Least squares with absorbed factors: effects of thousands of levels without a column for any of them.

The largest factor is eliminated exactly, since its block of the normal equations is diagonal (for one factor this is
the theorem of Frisch, Waugh and Lovell: regress what is left within levels). What remains is the Schur complement
:math:`S = G_{RR} - G_{R1} D_1^{-1} G_{1R}` for the other factors' levels, the dense columns and the intercept:
solved by a Cholesky factorisation with pivoting, which reveals the rank, or beyond a few thousand rows by conjugate
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import solve_triangular
from scipy.sparse.csgraph import connected_components

from residmix.errors import DesignWarning, warn
from residmix.moments.absorbed import FactorMoments, FactorStep, factor_block_rows, merge_factor_moments
from residmix.moments.affine import WithEffects
from residmix.moments.aliased import FactorAliases, Part, absorbed_first, pivoted
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments, made_of_numbers
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

# A column of which less than this share of the variance is left beside the others is aliased with them: rounding of a
# Gram matrix is of order 1e-16 times its size.
_ALIASED = 1e-11
# Where less than this is left, digits were lost, and a pass over the residuals brings them back.
_WEAK = 1e-4
_DENSE_LIMIT = 4000
_MAX_STEPS = 2000


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
        Factor to those of its levels that the other factors determine, beyond the one that always is.
    """

    effects: tuple[Array, ...] = ()
    level_weight: tuple[Array, ...] = ()
    nested: dict[int, tuple[int, ...]] | None = None

    def affine(self, n_removed: int | None = None) -> WithEffects:
        """Return the map to the residual, which takes out all factors, the first `n_removed` columns and the mean."""
        plain = super().affine(n_removed)
        effects = tuple(np.vstack([e, _level_mean(e)]) for e in self.effects)
        return WithEffects(plain.origin_x, plain.origin_a, plain.coef, plain.constant, plain.sign, effects)


def _level_mean(effects: Array) -> Array:
    """Return the mean over the levels that a feature has rows of, (d,); 0 if there are none."""
    total = effects.sum(axis=0)
    if np.isfinite(total).all():
        return total / max(len(effects), 1)
    known = ~np.isnan(effects)
    return np.where(known, effects, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


@dataclass
class _System:
    """Normal equations with the largest factor eliminated."""

    moments: FactorMoments
    first: int
    others: list[int]
    starts: list[int]  # where each other factor begins among the remaining unknowns; then the columns, then the end
    inverse: Array  # 1 / (weight of the eliminated levels), 0 for levels without rows
    gram: sparse.csr_array  # (remaining, remaining)
    link: sparse.csr_array  # (remaining, L1)
    scale: Array  # (q,), of the dense columns
    solve: Callable[[Array], Array]
    kept: NDArray[np.bool_]  # unknowns that aren't aliased
    weakest: float
    condition: float
    weights: list[Array]
    scatter: Array
    parts: Sequence[Part]

    @property
    def places(self) -> dict[int, slice]:
        """Where the levels of the other factors are among the remaining unknowns, and at -1 the dense columns."""
        own = {f: slice(*at) for f, at in zip(self.others, pairwise(self.starts), strict=True)}
        return own | {-1: slice(self.starts[-1], len(self.kept))}

    @cached_property
    def aliases(self) -> FactorAliases:
        """What the pivots left out: each such unknown, less what the others make of it."""
        places = self.places
        active = np.zeros(len(self.kept), dtype=bool)
        for f in self.others:
            active[places[f]] = self.weights[f] > 0
        active[places[-1]] = np.diagonal(self.scatter) > 0
        left_out = np.flatnonzero(active & ~self.kept)
        unit = np.zeros((len(self.kept), len(left_out)))
        unit[left_out, np.arange(len(left_out))] = 1.0
        image = self.gram @ unit - self.link @ (self.inverse[:, None] * (self.link.T @ unit))
        return FactorAliases(self, unit - self.solve(image), self.parts)

    def settled_unknowns(self, x_first: Array, x_rest: Array) -> tuple[Array, Array]:
        """Return the solution of least contributions."""
        found = self.unknowns(x_first, x_rest)
        return found if self.kept.all() else self.aliases.settled(*found)

    def covariance(self) -> Array:
        """Return that of the coefficients of the scaled dense columns, for a residual variance of 1."""
        unit = np.zeros((len(self.kept), len(self.scatter)))
        unit[self.places[-1]] = np.eye(len(self.scatter))
        if self.kept.all():
            return self.solve(unit)[self.places[-1]]
        first, rest = self.aliases.transposed(unit)
        solved = self.unknowns(first, rest)
        return np.asarray(first.T @ solved[0] + rest.T @ solved[1])

    def unknowns(self, x_first: Array, x_rest: Array) -> tuple[Array, Array]:
        """Return effects of the eliminated factor, and the other unknowns, for sums of the features."""
        rest = self.solve(x_rest - self.link @ (self.inverse[:, None] * x_first))
        return self.inverse[:, None] * (x_first - self.link.T @ rest), rest


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
        The terms, in order: what decides where they are aliased (see :mod:`residmix.moments.aliased`). Default: the
        factors, then each column by itself.
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
    """Tell which features lack some rows (d,): sums by level, whose weights are all features' own, don't hold those."""
    return np.any([~np.isfinite(s.x).all(axis=0) for s in moments.sums], axis=0)


def solve_factors(moments: FactorMoments, parts: Sequence[Part] = ()) -> FactorFit:
    """Fit from moments alone, as :func:`residmix.moments.solve.solve_moments` does."""
    return _solved(moments, parts)[0]


def _solved(moments: FactorMoments, parts: Sequence[Part]) -> tuple[FactorFit, _System]:
    linear = moments.linear
    moments.sums = [s.spread(size) for s, size in zip(moments.sums, moments.sizes, strict=True)]
    with one_blas_thread():
        system = _system(moments, parts)
        x = [s.x - s.weight[:, None] * linear.offset_x for s in moments.sums]
        scaled = linear.s_ax / system.scale[:, None]
        rest = np.vstack([*(x[f] for f in system.others), scaled])
        first, unknowns = system.settled_unknowns(x[system.first], rest)
        explained = np.sum(first * x[system.first], axis=0) + np.sum(unknowns * rest, axis=0)
        return _assembled(system, first, unknowns, np.maximum(linear.s_xx - explained, 0.0)), system


def _system(moments: FactorMoments, parts: Sequence[Part]) -> _System:
    linear, sizes, sums = moments.linear, moments.sizes, moments.sums
    q = linear.s_aa.shape[1]
    first = int(np.argmax(sizes))
    others = [f for f in range(len(sizes)) if f != first]
    starts = [0, *np.cumsum([sizes[f] for f in others]).tolist()]
    weight = sums[first].weight
    inverse = np.where(weight > 0, 1.0 / np.where(weight > 0, weight, 1.0), 0.0)
    spread = np.sqrt(np.maximum(np.diagonal(linear.s_aa[0]), 0.0))
    varies = spread > 8 * np.finfo(float).eps * np.sqrt(linear.weight[0]) * np.abs(linear.mean_a[0])
    scale = np.where(varies, spread, 1.0)

    def columns(f: int) -> Array:  # sums of the centred, scaled dense columns by level
        return np.where(varies, (sums[f].a - sums[f].weight[:, None] * linear.offset_a[0]) / scale, 0.0)

    def table(f: int, g: int) -> sparse.csr_array:
        if f == g:
            return sparse.csr_array(sparse.diags_array(sums[f].weight))
        return moments.cells[f"{f}:{g}"].matrix() if f < g else moments.cells[f"{g}:{f}"].matrix().T.tocsr()

    dense = np.where(np.outer(varies, varies), linear.s_aa[0] / scale[:, None] / scale, 0.0)
    grid: list[list[sparse.csr_array]] = [
        [*(table(f, g) for g in others), sparse.csr_array(columns(f))] for f in others
    ]
    grid.append([*(sparse.csr_array(columns(g)).T.tocsr() for g in others), sparse.csr_array(dense)])
    gram = sparse.csr_array(sparse.block_array(grid)) if starts[-1] + q else sparse.csr_array((0, 0))
    link = sparse.csr_array(
        sparse.vstack([*(table(f, first) for f in others), sparse.csr_array(columns(first)).T])
        if starts[-1] + q
        else (0, sizes[first])
    )
    solve, kept, weakest, condition = _solver(gram, link, inverse, starts)
    parts = parts or absorbed_first(len(sizes), q)
    weights = [s.weight for s in sums]
    return _System(
        moments,
        first,
        others,
        starts,
        inverse,
        gram,
        link,
        scale,
        solve,
        kept,
        weakest,
        condition,
        weights,
        dense,
        parts,
    )


def _solver(
    gram: sparse.csr_array, link: sparse.csr_array, inverse: Array, starts: list[int]
) -> tuple[Callable[[Array], Array], NDArray[np.bool_], float, float]:
    """Return a solver of the Schur complement, which unknowns it determines, and how well."""
    size = gram.shape[0]
    if size == 0:
        return (lambda right: right), np.zeros(0, dtype=bool), 1.0, 1.0
    own = gram.diagonal()
    root = np.sqrt(np.where(own > 0, own, 1.0))
    if size > _DENSE_LIMIT:
        return _iterative(gram, link, inverse, root, starts)
    through = (link * inverse) @ link.T
    schur = (gram - through).toarray() / root[:, None] / root
    lower, order, _ = pivoted(schur, _ALIASED)
    kept = np.zeros(size, dtype=bool)
    kept[order] = True

    def solve(right: Array) -> Array:
        out = np.zeros_like(right)
        if not len(order):  # LAPACK refuses matrices without rows
            return out
        inner = solve_triangular(lower, right[order] / root[order][:, None], lower=True)
        out[order] = solve_triangular(lower, inner, lower=True, trans="T") / root[order][:, None]
        return out

    pivots = np.diagonal(lower)
    weakest = float(pivots.min(initial=1.0) ** 2)
    return solve, kept, weakest, float(pivots.max(initial=1.0) / pivots.min(initial=1.0))


def _iterative(
    gram: sparse.csr_array, link: sparse.csr_array, inverse: Array, root: Array, starts: list[int]
) -> tuple[Callable[[Array], Array], NDArray[np.bool_], float, float]:
    """Return conjugate gradients on the Schur complement, preconditioned by its diagonal, for many right-hand sides.

    The complement is singular (effects of two factors trade a constant), but its right-hand sides lie in its range,
    where conjugate gradients converge.
    """
    left = sparse.csr_array(link * inverse)
    diagonal = np.maximum(gram.diagonal() - (left * link).sum(axis=1), 0.0)
    active = diagonal > _ALIASED * root**2
    for start, stop in pairwise(starts):
        part = link[start:stop]
        _, label = connected_components(sparse.block_array([[None, part], [part.T, None]]), directed=False)
        active[start + np.unique(label[: stop - start], return_index=True)[1]] = False
    precondition = np.where(active, 1.0 / np.where(active, diagonal, 1.0), 0.0)[:, None]

    def solve(right: Array) -> Array:
        right = np.where(active[:, None], right, 0.0)
        out = np.zeros_like(right)
        residual = right.copy()
        direction = precondition * residual
        energy = goal = np.sum(residual * direction, axis=0)
        for _ in range(_MAX_STEPS):
            if (energy <= 1e-24 * goal).all():
                return out
            direction = np.where(energy > 1e-24 * goal, direction, 0.0)  # done: further steps would only add rounding
            image = gram @ direction - link @ (left.T @ direction)
            image[~active] = 0.0
            curvature = np.sum(direction * image, axis=0)
            step = np.divide(energy, curvature, out=np.zeros_like(energy), where=curvature > 0)
            out += step * direction
            residual -= step * image
            preconditioned = precondition * residual
            before, energy = energy, np.sum(residual * preconditioned, axis=0)
            turn = np.divide(energy, before, out=np.zeros_like(energy), where=before > 0)
            direction = preconditioned + turn * direction
        left_over = float(np.sqrt(np.max(energy / np.where(goal > 0, goal, 1.0))))
        if left_over > 1e-9:
            warn(
                f"the effects of crossed factors did not converge in {_MAX_STEPS} steps: {left_over:.1e} of them is "
                "left; their levels are hardly connected, so merge rare ones or remove one factor at a time",
                DesignWarning,
            )
        return out

    return solve, active, 0.0, np.inf


def _assembled(system: _System, first: Array, unknowns: Array, rss: Array) -> FactorFit:
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


def _refined(rows: Rows, fit: FactorFit, system: _System) -> FactorFit:
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
