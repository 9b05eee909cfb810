"""Measures of dependence: shares of variance, tables of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.pairs import small
from residmix.moments.inference import explained, term_shares
from residmix.moments.linear import LinearMoments, linear_moments, merge_moments
from residmix.moments.solving.solve import LinearFit, solve_moments
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = [
    "Shares",
    "Variable",
    "counts_dependence",
    "fold_moments",
    "share_interval",
    "variance_shares",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Variable:
    """One metadata column on some rows.

    Attributes
    ----------
    name : str
    values : ndarray (n,)
        Numbers, or level indices when `levels` isn't empty. NaN or -1 where missing.
    levels : tuple of str
        Empty for numbers.
    """

    name: str
    values: NDArray[np.float64]
    levels: tuple[str, ...] = ()

    @property
    def known(self) -> NDArray[np.bool_]:
        return self.values >= 0 if self.levels else ~np.isnan(self.values)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Variable:
        return replace(self, values=self.values[rows])


# ---- shares of variance ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ByFold:
    """Moments of each fold of a block; None for folds without rows in it."""

    folds: NDArray[np.int8]
    n_folds: int
    plain: bool  # see `residmix.kernels.pairs.small`

    def __call__(self, block: Block) -> list[LinearMoments | None]:
        own = self.folds[block.start : block.start + block.n_rows]
        parts: list[LinearMoments | None] = []
        for index in range(self.n_folds):
            rows = own == index
            parts.append(linear_moments(_some(block, rows), plain=self.plain) if rows.any() else None)
        return parts


def _some(block: Block, rows: NDArray[np.bool_]) -> Block:
    return Block(0, block.X[rows], block.design[rows], (), None if block.weight is None else block.weight[rows])


def _merge_folds(one: list[LinearMoments | None], two: list[LinearMoments | None]) -> list[LinearMoments | None]:
    return [_merged(a, b) for a, b in zip(one, two, strict=True)]


def _merged(one: LinearMoments | None, two: LinearMoments | None) -> LinearMoments | None:
    if one is None or two is None:
        return two if one is None else one
    return merge_moments(one, two)


def fold_moments(rows: Rows, folds: NDArray[np.int8], n_folds: int) -> list[LinearMoments]:
    """Return the moments of each fold of the rows, in one pass."""
    parts = fold(rows, _ByFold(folds, n_folds, small(rows.n_rows, rows.n_features)), _merge_folds)
    return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Shares:
    """Share of the variance of each feature (d,) that a term, or the whole design, explains.

    Attributes
    ----------
    share, low, high, p_value : ndarray (d,)
        In the sample: partial :math:`R^2` with its confidence interval and the F test.
    degrees : ndarray (d,)
        Of the numerator of that test; 0 where the other terms determine the term, which then has no share.
    held_out : ndarray (d,)
        The same where each fold is predicted from the others; below 0 where predictions are worse than the mean.
    """

    share: Array
    low: Array
    high: Array
    p_value: Array
    degrees: Array
    held_out: Array


def variance_shares(moments: Sequence[LinearMoments], terms: Sequence[slice | None], confidence: float) -> list[Shares]:
    r"""Return what each term explains given the others; None stands for the whole design.

    In the sample :math:`(RSS_{-t} - RSS)/RSS_{-t}`; held out the same with sums of squared errors of prediction,
    :math:`\sum_f SSE_f` over the folds f, each predicted by coefficients of the other folds. For the whole design
    :math:`RSS_{-t}` is the spread about the mean: of all rows in the sample, of the training rows held out.

    Parameters
    ----------
    moments : list of LinearMoments
        One per fold.
    """
    fit = solve_moments(reduce(merge_moments, moments))
    training = [
        reduce(merge_moments, [part for k, part in enumerate(moments) if k != held]) for held in range(len(moments))
    ]
    q = len(fit.coef)
    full = _held_out_errors(training, moments, np.arange(q))
    found = []
    for term in terms:
        left_out = np.arange(q) if term is None else np.arange(q)[term]
        kept = np.setdiff1d(np.arange(q), left_out)
        without = _held_out_errors(training, moments, kept)
        with np.errstate(divide="ignore", invalid="ignore"):
            held_out = np.where(without > 0, 1 - full / without, 0.0)
        share, p_value, degrees = _in_sample(fit, slice(0, q) if term is None else term)
        low, high = share_interval(share, degrees, fit.residual_degrees, confidence)
        found.append(Shares(share, low, high, p_value, degrees, held_out))
    return found


def _in_sample(fit: LinearFit, term: slice) -> tuple[Array, Array, Array]:
    """Return share, p-value and numerator degrees of freedom of a term's F test, (d,) each."""
    share, p_value, degrees = term_shares(fit, term)
    return explained(fit) if term == slice(0, len(fit.coef)) else share, p_value, degrees


def _held_out_errors(
    training: Sequence[LinearMoments], moments: Sequence[LinearMoments], columns: NDArray[np.integer]
) -> Array:
    """Return the sum over folds of the squared errors of prediction from the other folds, (d,)."""
    total = np.zeros(len(moments[0].offset_x))
    for train, test in zip(training, moments, strict=True):
        fit = solve_moments(_of_columns(train, columns))
        total += _squared_errors(fit, _of_columns(test, columns))
    return total


def _of_columns(moments: LinearMoments, columns: NDArray[np.integer]) -> LinearMoments:
    return replace(
        moments,
        origin_a=moments.origin_a[columns],
        offset_a=moments.offset_a[:, columns],
        s_aa=moments.s_aa[:, columns][:, :, columns],
        s_ax=moments.s_ax[columns],
    )


def _squared_errors(fit: LinearFit, test: LinearMoments) -> Array:
    """Return the sum of squared errors (d,) of `fit` on the rows that `test` is the moments of."""
    step_a = (test.origin_a - fit.origin_a) + test.offset_a  # (g, q)
    mean = (test.origin_x - fit.origin_x) + test.offset_x - fit.constant - np.einsum("gk,kd->gd", step_a, fit.coef)
    mean = mean[0] if len(test.weight) == 1 else np.diagonal(mean)
    if len(test.weight) == 1:
        quadratic = np.einsum("kd,kd->d", fit.coef, test.s_aa[0] @ fit.coef)
    else:
        quadratic = np.einsum("kd,dkl,ld->d", fit.coef, test.s_aa, fit.coef)
    within = test.s_xx - 2 * np.einsum("kd,kd->d", fit.coef, test.s_ax) + quadratic
    return np.asarray(np.maximum(within, 0.0) + test.weight * mean**2)


def share_interval(share: Array, numerator: Array, denominator: Array, confidence: float) -> tuple[Array, Array]:
    r"""Return a confidence interval for a (partial) :math:`R^2` with fixed regressors and normal errors.

    The F statistic has a noncentral F distribution with noncentrality :math:`\lambda`; the limits are those
    :math:`\lambda` for which it is at its upper and lower quantile, on the scale
    :math:`\lambda / (\lambda + \nu_1 + \nu_2 + 1)` (Steiger 2004, Psychological Methods 9:164, eq. 13).

    Parameters
    ----------
    share : ndarray (d,)
    numerator, denominator : ndarray (d,)
        Degrees of freedom of the F test.
    confidence : float
        Such as 0.95.
    """
    from scipy.special import ncfdtr

    possible = (numerator > 0) & (denominator > 0)
    nu1, nu2 = np.where(possible, numerator, 1.0), np.where(possible, denominator, 1.0)
    total = nu1 + nu2 + 1
    capped = np.minimum(share, 1 - 1e-12)
    statistic = capped / (1 - capped) * nu2 / nu1
    limits = []
    for level in ((1 + confidence) / 2, (1 - confidence) / 2):
        # The distribution function falls as the noncentrality grows: bisection, on the scale of the share.
        low, high = np.zeros_like(share), np.full_like(share, 1 - 1e-12)
        for _ in range(50):
            middle = (low + high) / 2
            above = ncfdtr(nu1, nu2, middle / (1 - middle) * total, statistic) > level
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        limits.append(np.where(possible, (low + high) / 2, np.nan))
    return limits[0], limits[1]


# ---- components ------------------------------------------------------------------------------------------------------


def counts_dependence(
    components: NDArray[np.integer], variable: Variable, n_permutations: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    r"""Return the association of component labels with a variable: (1 + K,) values, and their p-values.

    First the adjusted mutual information of all components (Vinh, Epps and Bailey 2010; 0 by chance, 1 for a perfect
    match), then per component Cramér's :math:`V = \sqrt{\chi^2/n}` of the table "this component or another" by level.
    Numbers are cut at their deciles. p-values are for permutations of the variable's rows; those of the first value
    are of the mutual information itself, which orders permutations alike.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    known = variable.known
    labels = components[known]
    values = variable.values[known]
    if variable.levels:
        codes = values.astype(np.intp)
    else:
        codes = np.searchsorted(np.unique(np.quantile(values, np.linspace(0.1, 0.9, 9))), values)
    K, L = int(components.max()) + 1, int(codes.max()) + 1
    observed = _table(labels, codes, K, L)
    information, single = _counts_statistics(observed)
    exceeding = np.zeros(1 + K)
    for _ in range(n_permutations):
        chance, chances = _counts_statistics(_table(labels, rng.permutation(codes), K, L))
        # Sums of the same terms in another order must count as equal.
        exceeding += np.concatenate([[chance], chances]) >= np.concatenate([[information], single]) - 1e-12
    adjusted = adjusted_mutual_info_score(codes, labels)
    return np.concatenate([[adjusted], single]), (1 + exceeding) / (1 + n_permutations)


def _table(labels: NDArray[np.integer], codes: NDArray[np.integer], K: int, L: int) -> Array:
    return np.bincount(labels * L + codes, minlength=K * L).reshape(K, L).astype(float)


def _counts_statistics(table: Array) -> tuple[float, Array]:
    """Return the mutual information, and Cramér's V of each row against the others."""
    n = table.sum()
    rows, columns = table.sum(axis=1, keepdims=True), table.sum(axis=0)
    expected = rows * columns / n
    with np.errstate(divide="ignore", invalid="ignore"):
        information = float(np.nansum(table * np.log(table / expected)) / n)
        # Of the 2 x L table: the chi squares of the row and of the rest.
        squares = (table - expected) ** 2
        chi = np.nansum(squares / expected + squares / (columns - expected), axis=1)
    return information, np.sqrt(np.maximum(chi, 0.0) / n)
