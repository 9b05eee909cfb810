"""The spread of features as a function of the metadata: a log-linear model of their variances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.pooled.by_level import Still
from residmix.effects.spread.leverages import Leverages
from residmix.effects.spread.steps import Pairs, Steps, beginning, bounded, pinv, spread_of
from residmix.errors import DesignWarning, warn
from residmix.moments.erase import column_scale
from residmix.moments.linear import LinearMoments
from residmix.moments.scatter import Scatter, block_scatter
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.rows.scratch import scratch

__all__ = ["LogVariances", "Scale", "fit_log_variances", "tell_too_light", "tell_unsettled"]

Array = NDArray[np.float64]
Location = Callable[[Block], Array]
View = Callable[[Block], tuple[Array, Array, Array, Array]]

# Squared residuals count as at least this share of the pooled variance: where a feature is constant its log variance
# would be -inf. A fit that ends within ten times of it is such a case and isn't used.
_FLOOR = 1e-12
# Weight of the pull towards equal spread. It decides only what the rows leave open, such as a level with a single row.
_PULL = 1e-10
_MAX_PASSES = 100
# How far log variances may still be from where the steps lead.
_AHEAD = 1e-8


@dataclass(frozen=True)
class Scale:
    r"""How much wider than average a feature is at a metadata profile: :math:`f(a) = \exp(c + (a - o)'G)`.

    Attributes
    ----------
    origin : ndarray (q,)
        Mean of the design columns that are removed.
    intercept : ndarray (d,)
    coef : ndarray (q, d)
        Change of the log standard deviation per unit of each of these columns.
    still : tuple of Still
        Levels at which features are constant: their factor there is 1.

    Examples
    --------
    >>> import numpy as np
    >>> twice = Scale(np.zeros(1), np.zeros(1), np.array([[np.log(2.0)]]))
    >>> twice.factor(np.array([[0.0], [1.0]])).round(12).tolist()
    [[1.0], [2.0]]
    """

    origin: Array
    intercept: Array
    coef: Array
    still: tuple[Still, ...] = ()

    def factor(self, design: Array) -> Array:
        """Return the factors (b, d): divide by them to remove the effect on the spread, multiply to restore it."""
        factor: Array = (design[:, : len(self.origin)] - self.origin) @ self.coef
        factor += self.intercept
        np.exp(factor, out=factor)
        for levels in self.still:
            factor[levels.at(design)] = 1.0
        return factor

    def select(self, features: NDArray[np.integer[Any]]) -> Scale:
        """Return the same for a selection of the features."""
        still = tuple(levels.select(features) for levels in self.still)
        return Scale(self.origin, self.intercept[features], self.coef[:, features], still)


@dataclass(frozen=True)
class LogVariances:
    """Fitted log variances :math:`g_0 + a'g`, and what they were fitted to.

    Attributes
    ----------
    coef : ndarray (q + 1, d)
        Of 1 and the standardised design columns.
    mean, sd : ndarray (q,)
        Of the design columns.
    rows, view
        The rows, and how they are seen.
    varying : ndarray of bool (d,)
    squares : ndarray (d,)
        Sum of squares of the residuals.
    scatter : ndarray (q, q)
        Of the standardised columns, over all rows.
    removed : ndarray (q, d) or None
        Coefficients to remove of the design columns, where they aren't those of the fit.
    """

    coef: Array
    mean: Array
    sd: Array
    rows: Rows
    view: View
    varying: NDArray[np.bool_]
    squares: Array
    scatter: Array
    removed: Array | None = None

    def scale(
        self, columns: NDArray[np.intp], width: int, *, still: tuple[Still, ...] = (), features: Sequence[Any] = ()
    ) -> Scale:
        """Return the effects of some of the first `width` columns on the spread.

        Normalised so that ``e / factor`` has the same sum of squares as e: the pooled spread, in units of x.

        Warns
        -----
        DesignWarning
            If features, where they are named, are constant at some metadata; these keep their spread (factor 1).
        """
        return self.scales([(columns, width)], still=still, features=features)[0]

    def scales(
        self,
        parts: Sequence[tuple[NDArray[np.intp], int]],
        *,
        still: tuple[Still, ...] = (),
        features: Sequence[Any] = (),
    ) -> list[Scale]:
        """Return `scale` of several columns and widths, in one pass over the rows."""
        removed = [np.zeros((width, self.coef.shape[1])) for _, width in parts]
        for own, (columns, _) in zip(removed, parts, strict=True):
            own[columns] = (self.coef[1:] if self.removed is None else self.removed)[columns]
        found, lowest = fold(self.rows, partial(_norm, self.view, self.coef, removed), _add_and_lowest)
        flat = self.varying & (lowest < np.log(10 * _FLOOR))
        if flat.any() and len(features):
            some = ", ".join(repr(str(features[j])) for j in np.flatnonzero(flat)[:5])
            warn(
                f"{flat.sum()} of {flat.size} features ({some}) are constant at some values of the metadata, so their "
                "spread can't be rescaled. For these features only the mean is adjusted",
                DesignWarning,
            )
        use, scales = self.varying & ~flat, []
        for left, own in zip(found, removed, strict=True):
            norm = np.log(np.where(use, left, 1.0) / np.where(use, self.squares, 1.0))
            slopes = np.where(use, 0.5 * own / self.sd[: len(own), None], 0.0)
            scales.append(Scale(self.mean[: len(own)], np.where(use, 0.5 * norm, 0.0), slopes, still))
        return scales


def fit_log_variances(
    rows: Rows,
    location: Location,
    moments: LinearMoments,
    group: NDArray[np.int64],
    *,
    columns: NDArray[np.intp] | None = None,
    still: tuple[Still, ...] = (),
    start: tuple[slice, Array, Array] | None = None,
) -> LogVariances:
    r"""Fit :math:`\log \operatorname{Var}(e_j \mid a) = g_{0j} + a'g_j` for every feature j.

    Fisher scoring of the normal likelihood: with :math:`u_{ij} = e_{ij}^2 \exp(-\eta_{ij})` a step is

    .. math:: \Delta g_j = \Big(\sum_i w_i (1 - h_i) a_i a_i'\Big)^{-1} \sum_i w_i a_i \left(u_{ij} - (1 - h_i)\right)

    The matrix doesn't depend on the feature, so one pass over the rows is a step for all of them. The leverages
    :math:`h_i` correct for residuals being smaller than errors (Smyth 2002): for one factor the result is the sample
    variance of each level, with divisor :math:`n_k - 1`. A step that lowers the likelihood of a feature is halved for
    that feature; the likelihood is concave, so there is one optimum.

    Parameters
    ----------
    rows : Rows
        With a dense design: columns to remove first, then the preserved ones, whose spread is estimated and kept.
    location : callable
        ``location(block)`` are the residuals e (b, d) after all effects on the mean, NaN where a value is missing.
        Must be picklable.
    moments : LinearMoments
        Of the rows.
    group : ndarray of int (d,)
        Features with the same rows share a group.
    columns : ndarray of int, optional
        Design columns that the spread depends on. Default: all.
    still : tuple of Still
        Levels at which features are constant; these values are ignored and not rescaled.
    start : tuple, optional
        Columns of a factor, its levels in them (K, w), and log variances of these (K, d) to begin with. The result is
        the same, after fewer passes.

    References
    ----------
    Harvey, "Estimating regression models with multiplicative heteroscedasticity", Econometrica 44 (1976).
    Smyth, "An efficient algorithm for REML in heteroscedastic regression", JCGS 11 (2002).
    """
    mean, sd = _centre(rows)
    view = partial(_view, location, mean, sd, still)
    gram, squares, seen, size = fold(rows, partial(_sums, view), _add)
    inverse = pinv(gram, 1e-13)
    varying = squares > (64 * np.finfo(np.float64).eps) ** 2 * size
    pooled = np.where(varying, squares / np.maximum(seen, 1e-300), 1.0)

    used = np.arange(len(gram)) if columns is None else np.concatenate([[0], 1 + np.sort(columns)])
    about_mean = gram - np.outer(gram[0], gram[0]) / gram[0, 0]
    leverages = Leverages.of(gram, moments, group, mean, sd)
    (free_gram,) = fold(rows, partial(_free_gram, mean, sd, Leverages(inverse[None])), _add)
    if gram[0, 0] <= np.trace(inverse @ gram):
        tell_too_light(gram[0, 0], rows.n_rows)
    among = np.ix_(used, used)
    pull, gram_used = _PULL * about_mean[among], gram[among]
    coef = beginning(start, mean, sd, pooled) if start is not None else np.zeros((len(gram), rows.n_features))
    pairs = Pairs.of(mean, sd, *(() if start is None else start[:2]))
    steps = Steps(used, free_gram[among] + pull, pull, rows.n_features, pairs)
    step, best = np.zeros((len(used), rows.n_features)), np.full(rows.n_features, -np.inf)
    moving = np.full(rows.n_features, np.inf)
    for turn in range(_MAX_PASSES):
        trial, newton = coef.copy(), pairs if steps.look(turn, moving) else None
        trial[used] += step
        likelihood, score, observed = fold(rows, partial(_likelihood, view, leverages, pooled, trial, newton), _add)
        pulled = pull @ trial[used]
        likelihood -= 0.5 * np.sum(trial[used] * pulled, axis=0)
        # Rounding of a sum of many terms must not look like a fall.
        better = likelihood >= best - 1e-12 * np.abs(np.where(np.isfinite(best), best, 0.0))
        coef[:, better], best[better] = trial[:, better], likelihood[better]
        fresh = steps.of(score[used] - pulled, observed if newton else None)
        step = np.where(better, bounded(fresh, gram_used), 0.5 * step)
        before, moving = moving, spread_of(step, gram_used)
        # what a sequence of such steps would still move after this one
        ahead = moving * np.minimum(moving / np.maximum(before - moving, 1e-300), 1.0)
        if moving.max(initial=0.0) < 1e-7 or (turn and better.all() and ahead.max(initial=0.0) < _AHEAD):
            break
    else:
        tell_unsettled(moving, 1e-7, _MAX_PASSES)
    coef[used] += step
    return LogVariances(coef, mean, sd, rows, view, varying, squares, about_mean[1:, 1:])


def tell_unsettled(moving: Array, settled: float, passes: int) -> None:
    """Warn of features whose log variance still moves."""
    warn(
        f"the spread of {np.sum(moving >= settled)} of {moving.size} features has not converged in {passes} passes "
        f"(last change of log variance {moving.max():.1e}). The last estimate is used; a simpler formula or fewer "
        "levels may help",
        DesignWarning,
    )


def tell_too_light(weight: float, n_rows: int) -> None:
    """Warn of weights that count as no more rows than there are effects."""
    warn(
        f"the weights of {n_rows} rows sum to {weight:.3g}, which is no more than there are effects, so the spread "
        "can't be estimated: a row of weight 2 counts as two rows. Multiply the weights by a number",
        DesignWarning,
    )


def _centre(rows: Rows) -> tuple[Array, Array]:
    """Mean and standard deviation of the design columns; 1 for a column that doesn't vary."""
    moments = fold(rows, _design_scatter, Scatter.merge)
    sd = column_scale(moments.mean, moments.covariance)
    return moments.mean, np.where(sd > 0, sd, 1.0)


def _design_scatter(block: Block) -> Scatter:
    return block_scatter(replace(block, X=np.empty((block.n_rows, 0))))


def _centred(mean: Array, sd: Array, block: Block) -> tuple[Array, Array]:
    """Return [1, standardised design], and weights."""
    a = np.ones((block.n_rows, 1 + len(mean)))
    np.subtract(block.design, mean, out=a[:, 1:])
    a[:, 1:] /= sd
    return a, np.ones(block.n_rows) if block.weight is None else block.weight


def _view(
    location: Location, mean: Array, sd: Array, still: tuple[Still, ...], block: Block
) -> tuple[Array, Array, Array, Array]:
    """Return [1, standardised design], weights, squared residuals, and a mask of the values that aren't missing."""
    a, weight = _centred(mean, sd, block)
    residual = location(block)
    squares = residual if residual.dtype == np.float64 else scratch(residual.shape, np.float64)
    np.square(residual, out=squares, dtype=np.float64)
    for levels in still:
        squares[levels.at(block.design)] = np.nan
    if not np.isnan(squares.sum()):
        return a, weight, squares, np.ones((1, 1))
    missing = np.isnan(squares)
    squares[missing] = 0.0
    return a, weight, squares, (~missing).astype(np.float64)


def _add(one: tuple[Array, ...], two: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(a + b for a, b in zip(one, two, strict=True))


def _add_and_lowest(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    return one[0] + two[0], np.minimum(one[1], two[1])


def _sums(view: View, block: Block) -> tuple[Array, ...]:
    """Gram matrix of [1, design], sums of squared residuals, the weight they come from, and sums of squares of x."""
    return block.by_tile(partial(_sums_of, view), _add)


def _sums_of(view: View, block: Block) -> tuple[Array, ...]:
    a, weight, squares, seen = view(block)
    size = weight @ np.square(block.X, dtype=np.float64)
    if np.isnan(size.sum()):
        size = weight @ np.nan_to_num(np.square(block.X, dtype=np.float64))
    whole = np.full(len(size), weight.sum()) if seen.shape == (1, 1) else weight @ seen
    return (a * weight[:, None]).T @ a, weight @ squares, whole, size


def _free_gram(mean: Array, sd: Array, leverages: Leverages, block: Block) -> tuple[Array]:
    """Gram matrix of [1, design] with weights w (1 - h)."""
    a, weight = _centred(mean, sd, block)
    return ((a * (weight[:, None] * leverages.free(a))).T @ a,)


def _likelihood(
    view: View, leverages: Leverages, pooled: Array, coef: Array, pairs: Pairs | None, block: Block
) -> tuple[Array, ...]:
    """Log-likelihood (up to a constant), score and (given pairs) observed information of a log variance."""
    return block.by_tile(partial(_likelihood_of, view, leverages, pooled, -coef, pairs), _add)


def _likelihood_of(
    view: View, leverages: Leverages, pooled: Array, minus_coef: Array, pairs: Pairs | None, block: Block
) -> tuple[Array, ...]:
    a, weight, u, seen = view(block)
    free, whole = leverages.free(a), seen.shape == (1, 1)
    u /= pooled
    u += _FLOOR * free if whole else _FLOOR * free * seen
    eta = np.matmul(a, minus_coef, out=scratch(u.shape, np.float64))
    weighted = a * weight[:, None]
    # with nothing missing these are products of a column
    terms = eta if whole else eta * seen
    likelihood = (weight * free[:, 0]) @ terms if free.shape[1] == 1 else weight @ (free * terms)
    expected = weighted.T @ (free if whole else free * seen)
    u *= np.exp(eta, out=eta)
    likelihood -= weight @ u
    likelihood *= 0.5
    observed = np.zeros(0) if pairs is None else u.T @ (pairs.products(a, block.design) * weight[:, None])
    return likelihood, weighted.T @ u - expected, observed


def _norm(view: View, coef: Array, removed: Sequence[Array], block: Block) -> tuple[Array, Array]:
    """Sums of squares after each of several removed parts of the spread, and the lowest log variance ratio met."""
    return block.by_tile(partial(_norm_of, view, coef, removed), _add_and_lowest)


def _norm_of(view: View, coef: Array, removed: Sequence[Array], block: Block) -> tuple[Array, Array]:
    a, weight, squares, _ = view(block)
    left = np.zeros((len(removed), squares.shape[1]))
    eta = scratch(squares.shape, np.float64)
    for own, part in zip(left, removed, strict=True):
        if not part.any():
            own += weight @ squares
            continue
        np.matmul(a[:, 1 : 1 + len(part)], -part, out=eta)
        np.exp(eta, out=eta)
        eta *= squares
        own += weight @ eta
    return left, np.matmul(a, coef, out=eta).min(axis=0)
