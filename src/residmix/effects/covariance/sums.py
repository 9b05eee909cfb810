"""Number, mean and products of the rows of each level, after effects on mean and spread are removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.covariance.transport import Recoloured
from residmix.effects.pooled.by_level import level_sums, merge_sums
from residmix.effects.removal import LinearRemoval
from residmix.effects.spread.rescale import Rescaled
from residmix.moments.by_level import Grouping, LevelMoments, level_of, residual_sums
from residmix.moments.fit import LinearFit
from residmix.moments.linear import LinearMoments
from residmix.moments.scatter import Scatter, block_scatter
from residmix.rows.block import NO_COLUMNS, Block
from residmix.rows.rows import Rows, fold
from residmix.rows.scratch import scratch
from residmix.rows.threads import one_blas_thread

__all__ = ["Standard", "by_moments", "by_rows"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standard:
    """Rows after all effects on mean and spread, in standard deviations, by level of a factor.

    Attributes
    ----------
    sd : ndarray (d,)
        0 for features that stay as they are.
    weight, means : ndarray (L,), (L, d)
    mean : ndarray (d,)
        Of all rows.
    axes, variances : ndarray (d, r), (r,)
        Principal directions of all rows about their mean, or about their levels' means, largest first, and the sums of
        squares along them.
    degrees : float
        What these are divided by.
    parts : list of _Products or None
        Products about the levels' means; None where only `rows` tells them.
    rows : tuple of Rows and callable, optional
        The rows, and the function of directions that returns the function of a block for products of its scores; where
        these cost less than those of `parts`.
    directions : ndarray (d, K), optional
        Along which products of scores are looked at, those of rows in `of_scores` (L, K, K).
    """

    sd: Array
    weight: Array
    means: Array
    mean: Array
    axes: Array
    variances: Array
    degrees: float
    parts: list[_Products] | None = None
    rows: tuple[Rows, Any] | None = None
    directions: Array | None = None
    of_scores: Array | None = None

    def along(self, directions: Array) -> Standard:
        """Return the same with the products of scores along some directions (d, K)."""
        if self.rows is None:
            return replace(self, directions=directions)
        rows, products_of = self.rows
        (found,) = fold(rows, products_of(directions), _add)
        return replace(self, directions=directions, of_scores=found)

    def products(self, k: int) -> Array:
        """Return the products (K, K) of the scores of a level."""
        if self.of_scores is not None:
            return np.asarray(self.of_scores[k])
        assert self.parts is not None and self.directions is not None
        return self.parts[k].along(self.directions)

    def squares(self, k: int) -> Array:
        """Return their diagonal, (K,)."""
        if self.of_scores is not None:
            return np.asarray(np.diagonal(self.of_scores[k]))
        assert self.parts is not None and self.directions is not None
        return self.parts[k].squares(self.directions)


@dataclass(frozen=True)
class _Products:
    """Products (d, d) of scaled residuals about their mean at a level, D (S - F'B - B'F) D.

    With S, C and A the products of the features, of other design columns with them and of these columns, and B the
    coefficients, S - C'B - B'C + B'AB has this form with F = C - AB/2. S is None without rows.
    """

    S: Array | None
    F: Array
    B: Array
    scale: Array

    def along(self, axes: Array) -> Array:
        """Return W'(S - F'B - B'F)W with W = D axes."""
        if self.S is None:
            return np.zeros((axes.shape[1], axes.shape[1]))
        W = axes * self.scale[:, None]
        found: Array = W.T @ (self.S @ W)
        if len(self.B):
            half = (self.F @ W).T @ (self.B @ W)
            found -= half
            found -= half.T
        return found

    def squares(self, axes: Array) -> Array:
        """Return the diagonal of `along`."""
        if self.S is None:
            return np.zeros(axes.shape[1])
        W = axes * self.scale[:, None]
        found: Array = np.einsum("dk,dk->k", W, self.S @ W)
        if len(self.B):
            found -= 2.0 * np.einsum("qk,qk->k", self.F @ W, self.B @ W)
        return np.maximum(found, 0.0)


@one_blas_thread()
def by_moments(
    moments: LevelMoments, grouping: Grouping, found: LinearRemoval, *, within: bool, rows: Rows | None = None
) -> Standard:
    """Return the sums from moments by level, where the spreads are those of the same levels.

    With fewer `rows` than the products by level have, the products of scores are those of the rows: S_k W, with d^2 K
    multiplications for each level, costs more than the scores, with d K for each row.
    """
    fit, name = found.applied, grouping.name
    n, means, squares, _ = residual_sums(moments, grouping, fit)
    factor = _factors(found, grouping, len(fit.coef))
    weight, means, squares = n.max(axis=1), means / factor, squares / factor**2
    mean, sd = _pooled(weight, means, squares, found.left)
    inverse = np.where(sd > 0, 1.0, 0.0) / np.where(sd > 0, sd, 1.0)
    others = grouping.others(len(fit.coef))
    of_level = list(zip(moments.scatter[name], moments.levels[name], inverse / factor, strict=True))
    parts = [_residual_products(fit, others, *of) for of in of_level]
    total = _total(parts)
    means, mean = means * inverse, mean * inverse
    if not within:
        about = np.sqrt(weight)[:, None] * (means - mean)
        total += about.T @ about
    variances, axes = np.linalg.eigh(total)
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    by_row = None
    if within and rows is not None and rows.n_rows < len(parts) * rows.n_features:
        # a block's sums are as many numbers as its rows: fewer blocks, fewer of them
        rows = rows.with_block_rows(max(rows.block_rows, 8192))
        by_row = rows, partial(_of_centred, grouping, others, moments.levels[name], parts)
    return Standard(sd, weight, means, mean, axes, variances, _degrees(weight, within), parts, by_row)


def _residual_products(
    fit: LinearFit, others: NDArray[np.intp], products: Array | None, level: Any, scale: Array
) -> _Products:
    B = fit.coef[others]
    return _Products(products, level.s_ax - 0.5 * (level.s_aa[0] @ B), B, scale)


def _total(parts: Sequence[_Products]) -> Array:
    """Return the sum of products D (S - F'B - B'F) D."""
    total, scaled = np.zeros((2, len(parts[0].scale), len(parts[0].scale)))
    seen = [(own, own.S) for own in parts if own.S is not None]
    for own, products in seen:
        np.multiply(products, own.scale, out=scaled)
        scaled *= own.scale[:, None]
        total += scaled
    if seen and len(parts[0].B):
        half = np.vstack([own.F * own.scale for own, _ in seen]).T @ np.vstack([own.B * own.scale for own, _ in seen])
        total -= half
        total -= half.T
    return total


def _factors(found: LinearRemoval, grouping: Grouping, width: int) -> Array:
    """Return how much wider than average each feature is at each level, (L, d)."""
    if found.scale is None:
        return np.ones((len(grouping.coded), len(found.fit.rss)))
    rows = np.zeros((len(grouping.coded), width))
    rows[:, : len(found.scale.origin)] = found.scale.origin
    rows[:, grouping.columns] = grouping.coded
    return found.scale.factor(rows)


def _pooled(weight: Array, means: Array, squares: Array, left: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return mean and standard deviation of all rows, (d,); features that don't vary, or stay as they are, have 0."""
    total = max(float(weight.sum()), 1e-300)
    mean = weight @ means / total
    variance = (squares.sum(axis=0) + weight @ (means - mean) ** 2) / total
    return mean, np.sqrt(np.where(left, 0.0, variance))


def _degrees(weight: Array, within: bool) -> float:
    levels = np.count_nonzero(weight) if within else 0
    return max(float(weight.sum()) - levels, 1.0)


def by_rows(rows: Rows, grouping: Grouping, found: LinearRemoval, *, within: bool) -> Standard:
    """Return the same from the rows: sums by level, then pooled products or, of few rows, the rows themselves."""
    view = partial(_evened, found)
    n, means, squares = fold(rows, partial(_level_sums, view, grouping), merge_sums)
    weight = n.max(axis=1)
    mean, sd = _pooled(weight, means, squares, found.left)
    inverse = np.where(sd > 0, 1.0, 0.0) / np.where(sd > 0, sd, 1.0)
    means, mean = means * inverse, mean * inverse
    centred = partial(_standard, view, grouping, inverse, means if within else np.broadcast_to(mean, means.shape))
    with one_blas_thread():
        if rows.n_rows < rows.n_features:
            u = np.concatenate(fold(rows, partial(_collected, centred), _join))
            variances, turn = np.linalg.eigh(u @ u.T)
            keep = variances > 1e-12 * variances.max(initial=0.0)
            variances, turn = variances[keep][::-1], turn[:, keep][:, ::-1]
            axes = u.T @ turn / np.sqrt(variances)
        else:
            variances, axes = np.linalg.eigh(fold(rows, partial(_scatter, centred), Scatter.merge).scatter)
            variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    by_level = partial(_standard, view, grouping, inverse, np.zeros_like(means))
    return Standard(
        sd,
        weight,
        means,
        mean,
        axes,
        variances,
        _degrees(weight, within),
        rows=(rows, partial(_of_scores, partial(_at, by_level, grouping), means)),
    )


def _evened(found: LinearRemoval, block: Block) -> Array:
    """Return rows (b, d) after all effects on mean and spread."""
    remover = found.remover()
    evened = remover.rescaled if isinstance(remover, Recoloured) else remover
    assert isinstance(evened, Rescaled)
    exact = replace(block, X=np.asarray(block.X, dtype=np.float64))
    return np.asarray(evened(exact)) - evened.kept(exact)


def _level_sums(view: Any, grouping: Grouping, block: Block) -> tuple[Array, Array, Array]:
    own = level_of(block.design, grouping.columns, grouping.coded)
    return level_sums(view(block), own, len(grouping.coded), block.weight)


def _standard(view: Any, grouping: Grouping, inverse: Array, centres: Array, block: Block) -> Array:
    """Return rows in standard deviations, about the centre of their level."""
    own = level_of(block.design, grouping.columns, grouping.coded)
    return np.asarray(view(block) * inverse - centres[own])


def _at(standard: Any, grouping: Grouping, block: Block) -> tuple[Array, NDArray[np.intp]]:
    return standard(block), level_of(block.design, grouping.columns, grouping.coded)


def _collected(centred: Any, block: Block) -> list[Array]:
    weight = 1.0 if block.weight is None else np.sqrt(block.weight)[:, None]
    return [centred(block) * weight]


def _join(one: list[Array], two: list[Array]) -> list[Array]:
    return one + two


def _scatter(centred: Any, block: Block) -> Scatter:
    return block_scatter(replace(block, X=centred(block), design=NO_COLUMNS))


def _of_scores(view: Any, means: Array, directions: Array) -> Any:
    """Return the function of blocks for products of scores of standardised rows, about their levels' means."""
    return partial(_score_products, view, means @ directions, directions)


def _score_products(view: Any, means: Array, axes: Array, block: Block) -> tuple[Array]:
    """Return the products (L, K, K) of scores about their levels' means."""
    u, own = view(block)
    scores = u @ axes - means[own]
    weighted = scores if block.weight is None else scores * block.weight[:, None]
    out = np.zeros((len(means), scores.shape[1], scores.shape[1]))
    for k in np.unique(own):
        at = own == k
        out[k] = weighted[at].T @ scores[at]
    return (out,)


def _of_centred(
    grouping: Grouping,
    others: NDArray[np.intp],
    levels: Sequence[LinearMoments],
    parts: Sequence[_Products],
    directions: Array,
) -> Any:
    """Return the function of blocks for products of scores of rows that are as in fit."""
    slim = [replace(part, S=None, F=part.F[:0]) for part in parts]
    return partial(_centred_products, grouping, others, levels, slim, directions)


def _centred_products(
    grouping: Grouping,
    others: NDArray[np.intp],
    levels: Sequence[LinearMoments],
    parts: Sequence[_Products],
    directions: Array,
    block: Block,
) -> tuple[Array]:
    """Return the products (L, K, K) of the scores of x - a'B, about their means at the rows' levels."""
    own = level_of(block.design, grouping.columns, grouping.coded)
    order, size = np.argsort(own, kind="stable"), directions.shape[1]
    starts = np.searchsorted(own[order], np.arange(len(levels) + 1))
    out = np.zeros((len(levels), size, size))
    # level by level: rows and scores stay near the processor
    for k in np.flatnonzero(np.diff(starts)).tolist():
        at, level, part = order[starts[k] : starts[k + 1]], levels[k], parts[k]
        x = np.array(block.X[at], dtype=np.float64)
        x -= level.origin_x
        x -= level.offset_x
        if len(others):
            x -= ((block.design[at[:, None], others] - level.origin_a) - level.offset_a) @ part.B
        x *= part.scale
        if block.weight is not None:
            x *= np.sqrt(block.weight[at])[:, None]
        scores = np.matmul(x, directions, out=scratch((len(at), size), np.float64))
        np.matmul(scores.T, scores, out=out[k])
    return (out,)


def _add(one: tuple[Array], two: tuple[Array]) -> tuple[Array]:
    return (one[0] + two[0],)
