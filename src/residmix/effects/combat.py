"""Batch effects pooled over features by empirical Bayes: ComBat as moments in, coefficients out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.effects.scale import Location, Scale
from residmix.errors import DesignWarning, warn
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["Shrunk", "posterior", "posterior_shift", "shrink_levels"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Shrunk:
    """What shrinkage changes in a linear fit.

    Attributes
    ----------
    coef : ndarray (q, d)
        To be added to the coefficients; zero but for the columns of the factor.
    intercept : ndarray (d,)
        To be added to the prediction where every design column is 0.
    scale : Scale or None
        The factor's effect on the spread, where it was asked for.
    grand : ndarray (d,)
        Mean effect of the levels before shrinkage, each counting with its rows: what shifts are relative to.
    pooled : ndarray (d,)
        Pooled standard deviation; 0 for features that were not shrunk.
    """

    coef: Array
    intercept: Array
    scale: Scale | None
    grand: Array
    pooled: Array


def shrink_levels(
    rows: Rows,
    location: Location,
    coef: Array,
    columns: slice,
    levels: Array,
    n_removed: int,
    *,
    spread: bool,
    reference: int | None = None,
    one_row: bool = False,
) -> Shrunk:
    r"""Shrink the effects of one factor's levels towards what they have in common over the features.

    With the residuals' pooled variance :math:`s_j^2 = \sum_i e_{ij}^2 / n` and the level effects
    :math:`\hat\gamma_{kj}`, :math:`\hat\delta_{kj}` (shift and variance ratio, in units of :math:`s_j`), the priors
    :math:`\gamma_{kj} \sim N(\bar\gamma_k, \tau_k^2)` and :math:`\delta_{kj} \sim` InverseGamma have their parameters
    from the moments over the features. Shift and spread are replaced by their posterior means.

    Parameters
    ----------
    rows : Rows
        With a dense design.
    location : callable
        ``location(block)``: residuals (b, d) after all effects on the mean. Must be picklable.
    coef : ndarray (q, d)
        Least-squares coefficients of all design columns.
    columns : slice
        The factor's columns.
    levels : ndarray (K, columns)
        How each level is coded in them.
    n_removed : int
        Design columns to remove, this factor's among them.
    spread : bool
        Whether to shrink and remove the levels' effect on the variance too. If not, all variance ratios are 1.
    reference : int, optional
        A level whose rows stay as they are: shifts are relative to it, and s_j is the standard deviation within it.
    one_row : bool
        Take every level for one of a single row, as sva's ``mean.only`` does.

    Notes
    -----
    With ``spread=True`` this is the parametric ComBat. ``sva::ComBat`` stops when no estimate moves by more than 1e-4
    of itself; here the fixed point is iterated to rounding. With ``spread=False``, a level of :math:`n_k` rows gets
    the posterior mean for :math:`n_k` rows, unless `one_row`.

    References
    ----------
    Johnson, Li and Rabinovic, "Adjusting batch effects in microarray expression data using empirical Bayes
    methods", Biostatistics 8 (2007), section 3.
    """
    n, means, squares = fold(rows, _LevelSums(location, columns, levels), _add)
    present = n.max(axis=1) > 0
    n, means, squares, levels = n[present], means[present], squares[present], levels[present]
    squares = np.maximum(squares - n * means**2, 0.0)
    effect = levels @ coef[columns] + means
    total = np.where(n.sum(axis=0) > 0, n.sum(axis=0), 1.0)
    grand = np.sum(n * effect, axis=0) / total
    pooled = np.sqrt(np.sum(squares, axis=0) / total)
    if reference is not None:
        reference = int(np.count_nonzero(present[:reference]))
        grand = effect[reference]
        pooled = np.sqrt(squares[reference] / np.where(n[reference] > 0, n[reference], 1.0))
    shift = effect - grand

    several = n >= 2
    usable = (pooled > 0) & np.all(~several | (squares > 1e-20 * pooled**2), axis=0)
    if usable.sum() < 2:
        raise ValueError(
            f"shrinkage='eb' pools over features, but {usable.sum()} of {usable.size} vary inside every level; "
            "use shrinkage=None"
        )
    if not usable.all():
        some = ", ".join(map(str, np.flatnonzero(~usable)[:5]))
        warn(
            f"{np.sum(~usable)} of {usable.size} features (number {some}) do not vary inside some level; "
            "for these the plain level means are removed, without shrinkage",
            DesignWarning,
        )
    gamma = shift[:, usable] / pooled[usable]
    if spread:
        delta = squares[:, usable] / np.maximum(n[:, usable] - 1, 1) / pooled[usable] ** 2
        gamma, delta = posterior(gamma, delta, n[:, usable])
    else:
        delta = np.ones_like(gamma)
        gamma = posterior_shift(gamma, delta, np.ones_like(gamma) if one_row else n[:, usable])
    if reference is not None:
        gamma[reference], delta[reference] = 0.0, 1.0

    change, log_sd = np.zeros_like(shift), np.zeros_like(shift)
    change[:, usable] = gamma * pooled[usable] - shift[:, usable]
    log_sd[:, usable] = 0.5 * np.log(delta)
    to_columns = np.linalg.pinv(np.concatenate([levels, np.ones((len(levels), 1))], axis=1))
    scale = None
    if spread:
        of_level = to_columns @ log_sd
        scale = Scale(np.zeros(n_removed), of_level[-1], _padded(of_level[:-1], columns, n_removed))
    of_level = to_columns @ change
    added = _padded(of_level[:-1], columns, len(coef))
    return Shrunk(added, of_level[-1], scale, grand, np.where(usable, pooled, 0.0))


def posterior_shift(gamma: Array, delta: Array, n: Array) -> Array:
    r"""Posterior mean of shifts (K, d), :math:`(n \tau^2 \hat\gamma + \delta \bar\gamma) / (n \tau^2 + \delta)`."""
    common, spread = gamma.mean(axis=1, keepdims=True), gamma.var(axis=1, ddof=1, keepdims=True)
    return (n * spread * gamma + delta * common) / (n * spread + delta)


def posterior(gamma: Array, delta: Array, n: Array) -> tuple[Array, Array]:
    r"""Return posterior means of shifts and variance ratios, each (K, d); Johnson et al. (2007), eq. 3.1.

    Parameters
    ----------
    gamma, delta : ndarray (K, d)
        Estimated shifts and variance ratios (divisor n - 1). A level with one row has no ratio; it keeps 1.
    n : ndarray (K, d)
        Rows behind each.
    """
    common, between = gamma.mean(axis=1, keepdims=True), gamma.var(axis=1, ddof=1, keepdims=True)
    single = n < 2
    mean = delta.mean(axis=1, keepdims=True)
    # Equal ratios in all features would make the prior infinitely sharp.
    vary = np.maximum(delta.var(axis=1, ddof=1, keepdims=True), 1e-14 * mean**2 + 1e-300)
    shape, rate = (2 * vary + mean**2) / vary, (mean * vary + mean**3) / vary
    inside = (n - 1) * delta
    ratio = np.where(single, 1.0, delta)
    for _ in range(10_000):
        shifted = (n * between * gamma + ratio * common) / (n * between + ratio)
        sharper = (0.5 * (inside + n * (gamma - shifted) ** 2) + rate) / (0.5 * n + shape - 1)
        sharper = np.where(single, 1.0, sharper)
        moved = np.max(np.abs(sharper - ratio) / ratio)
        ratio = sharper
        if moved <= 1e-14:
            break
    return (n * between * gamma + ratio * common) / (n * between + ratio), ratio


def _padded(values: Array, columns: slice, width: int) -> Array:
    out = np.zeros((width, values.shape[1]))
    out[columns] = values
    return out


@dataclass(frozen=True)
class _LevelSums:
    """Weight, mean and sum of squares of the residuals by level, (K, d) each."""

    location: Location
    columns: slice
    levels: Array

    def __call__(self, block: Block) -> tuple[Array, Array, Array]:
        coded = np.empty((block.n_rows, 0)) if block.design is None else block.design[:, self.columns]
        distance = np.sum(self.levels**2, axis=1) - 2 * coded @ self.levels.T
        member = np.zeros(distance.shape)
        member[np.arange(len(member)), distance.argmin(axis=1)] = 1.0 if block.weight is None else block.weight
        e = np.array(self.location(block), dtype=np.float64)
        missing = np.isnan(e)
        e[missing] = 0.0
        n = member.T @ (~missing).astype(np.float64)
        return n, member.T @ e / np.where(n > 0, n, 1.0), member.T @ e**2


def _add(one: tuple[Array, Array, Array], two: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    n = one[0] + two[0]
    mean = (one[0] * one[1] + two[0] * two[1]) / np.where(n > 0, n, 1.0)
    return n, mean, one[2] + two[2]
