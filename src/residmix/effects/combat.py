"""Batch effects pooled over features by empirical Bayes: ComBat as moments in, coefficients out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.by_level import (
    Still,
    level_of,
    level_ranges,
    level_sums,
    merge_ranges,
    merge_sums,
    tell_still,
)
from residmix.effects.effect import Effect, need_dense
from residmix.effects.posterior import posterior, posterior_shift
from residmix.effects.removal import LinearRemoval
from residmix.effects.scale import Location, Scale
from residmix.effects.unseen.batches import Frozen
from residmix.errors import DesignWarning, did_you_mean, warn
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["EmpiricalBayes"]

Array = NDArray[np.float64]
Sums = tuple[Array, ...]


@dataclass(frozen=True)
class EmpiricalBayes:
    r"""Effects of one factor's levels, shrunk towards what they have in common over the features.

    With the residuals' pooled variance :math:`s_j^2 = \sum_i e_{ij}^2 / n` and the level effects
    :math:`\hat\gamma_{kj}`, :math:`\hat\delta_{kj}` (shift and variance ratio, in units of :math:`s_j`), the priors
    :math:`\gamma_{kj} \sim N(\bar\gamma_k, \tau_k^2)` and :math:`\delta_{kj} \sim` InverseGamma have their parameters
    from the moments over the features. Shift and spread are replaced by their posterior means.

    Attributes
    ----------
    mean : Effect
        How the effects are estimated before.
    spread : bool
        Whether to shrink and remove the levels' effect on the variance too. If not, all variance ratios are 1.
    one_row : bool
        Take every level for one of a single row, as sva's ``mean.only`` does.
    reference : level, optional
        A level whose rows stay as they are: shifts are relative to it, and s_j is the standard deviation within it.

    Notes
    -----
    With `spread` this is the parametric ComBat. ``sva::ComBat`` stops when no estimate moves by more than 1e-4 of
    itself; here the fixed point is iterated to rounding. Without it, a level of :math:`n_k` rows gets the posterior
    mean for :math:`n_k` rows, unless `one_row`.

    References
    ----------
    Johnson, Li and Rabinovic, "Adjusting batch effects in microarray expression data using empirical Bayes
    methods", Biostatistics 8 (2007), section 3.
    """

    mean: Effect
    spread: bool = False
    one_row: bool = False
    reference: Any = None

    merges: ClassVar[bool] = False
    exact_loo: ClassVar[bool] = False

    @property
    def columns_up_to(self) -> int:
        return self.mean.columns_up_to

    def check(self, design: Design) -> None:
        """Raise ValueError unless exactly one factor is removed, and knows the reference."""
        self.mean.check(design)
        if not design.terms:
            raise ValueError("shrinkage='eb' needs a factor to shrink: give a formula, or metadata=")
        need_dense(design)
        factor = _only_factor(design)
        if self.reference is not None:
            _place(design, factor, self.reference)

    def fit(self, rows: Rows, design: Design, features: Sequence[Any]) -> LinearRemoval:
        found: LinearRemoval = self.mean.fit(rows, design, features)
        factor = _only_factor(design)
        coded = design.level_rows(factor)
        step = partial(_level_sums, found.everything(), factor.columns, coded)
        sums, ranges = fold(rows, step, _merge)
        reference = None if self.reference is None else _place(design, factor, self.reference)
        still = Still.of(factor, coded, ranges)
        tell_still({factor.name: still}, design, features, "as in sva, they stay as they are at every level")
        levels = _Levels.of(sums, coded, found.applied.coef[factor.columns], np.any(still.mask, axis=0), reference)
        return self._pooled(found, levels, factor, design, features)

    def _pooled(
        self, found: LinearRemoval, levels: _Levels, factor: Term, design: Design, features: Sequence[Any]
    ) -> LinearRemoval:
        usable = levels.usable(features)
        change, log_sd = np.zeros_like(levels.shift), np.zeros_like(levels.shift)
        if len(levels.coded) > 1:
            gamma, delta = self._posterior(levels, usable)
            change[:, usable] = gamma * levels.pooled[usable] - levels.shift[:, usable]
            log_sd[:, usable] = 0.5 * np.log(delta)

        fit, width = found.applied, design.n_removed
        average = design.known_level_rows(factor).mean(axis=0)
        to_columns = np.linalg.pinv(np.column_stack([levels.coded, np.ones(len(levels.coded))]))
        of_level = to_columns @ change
        added, constant = _padded(of_level[:-1], factor.columns, len(fit.coef)), of_level[-1].copy()
        # a factor without effect leaves the mean of the rows where it is
        added[factor.columns, levels.left] = -fit.coef[factor.columns, levels.left]
        mean = (fit.origin_a + fit.offset_a)[fit.group, factor.columns]
        constant[levels.left] = np.einsum("dk,kd->d", mean, fit.coef[factor.columns])[levels.left]
        shrunk = replace(fit, coef=fit.coef + added, constant=fit.constant + constant + fit.origin_a @ added)
        shift = average @ shrunk.coef[factor.columns] + constant - levels.grand
        frozen = Frozen(np.where(usable, levels.pooled, 0.0), shift, None, self.one_row, levels.left)
        if not self.spread:
            return replace(found, shrunk=shrunk, frozen=frozen)
        of_level = to_columns @ log_sd
        scale = Scale(np.zeros(width), of_level[-1], _padded(of_level[:-1], factor.columns, width))
        frozen = replace(frozen, log_sd=scale.intercept + average @ scale.coef[factor.columns])
        return replace(found, shrunk=shrunk, scale=scale, frozen=frozen)

    def _posterior(self, levels: _Levels, usable: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return shifts and variance ratios (K, usable) given those of all features."""
        n, pooled = levels.n[:, usable], levels.pooled[usable]
        gamma = levels.shift[:, usable] / pooled
        if self.spread:
            gamma, delta = posterior(gamma, levels.squares[:, usable] / np.maximum(n - 1, 1) / pooled**2, n)
        else:
            delta = np.ones_like(gamma)
            gamma = posterior_shift(gamma, delta, np.ones_like(gamma) if self.one_row else n)
        if levels.reference is not None:
            gamma[levels.reference], delta[levels.reference] = 0.0, 1.0
        return gamma, delta


@dataclass(frozen=True)
class _Levels:
    """What the rows tell of each level before shrinkage.

    Attributes
    ----------
    coded : ndarray (K, w)
        Design columns of the levels that have rows.
    n, squares : ndarray (K, d)
        Weight of their rows, and sum of squares about their mean.
    shift : ndarray (K, d)
        Effect beyond `grand`.
    grand, pooled : ndarray (d,)
        Mean effect, each level counting with its rows, and standard deviation within levels; or the reference's.
    left : ndarray of bool (d,)
        Features that stay as they are.
    reference : int or None
        Which level it is.
    """

    coded: Array
    n: Array
    squares: Array
    shift: Array
    grand: Array
    pooled: Array
    left: NDArray[np.bool_]
    reference: int | None

    @classmethod
    def of(cls, sums: Sums, coded: Array, coef: Array, left: NDArray[np.bool_], reference: int | None) -> _Levels:
        """Return what is told by what `_level_sums` gives, and by the factor's coefficients."""
        n, means, squares = sums
        present = n.max(axis=1) > 0
        n, means, squares, coded = n[present], means[present], squares[present], coded[present]
        effect = coded @ coef + means
        total = np.where(n.sum(axis=0) > 0, n.sum(axis=0), 1.0)
        grand = np.sum(n * effect, axis=0) / total
        pooled = np.sqrt(np.sum(squares, axis=0) / total)
        if reference is not None:
            reference = int(np.count_nonzero(present[:reference]))
            grand = effect[reference]
            pooled = np.sqrt(squares[reference] / np.where(n[reference] > 0, n[reference], 1.0))
        return cls(coded, n, squares, effect - grand, grand, pooled, left, reference)

    def usable(self, features: Sequence[Any]) -> NDArray[np.bool_]:
        """Tell which features (d,) vary inside every level, so that they take part in the pooling; warn of others."""
        varies = (self.pooled > 0) & np.all((self.n < 2) | (self.squares > 1e-20 * self.pooled**2), axis=0)
        usable = varies & ~self.left
        if usable.sum() < 2 and len(self.coded) > 1:
            raise ValueError(
                f"shrinkage='eb' pools over features, but {usable.sum()} of {usable.size} vary inside every level; "
                "use shrinkage=None"
            )
        odd = ~varies & ~self.left
        if odd.any():
            some = ", ".join(repr(str(features[j])) for j in np.flatnonzero(odd)[:5])
            warn(
                f"{odd.sum()} of {odd.size} features ({some}) do not vary inside some level once the other effects are "
                "out; for these the plain level means are removed, without shrinkage",
                DesignWarning,
            )
        return usable


def _level_sums(location: Location, columns: slice, coded: Array, block: Block) -> tuple[Sums, Sums]:
    """Weight, mean and squares of the residuals by level, and the ranges of the features."""
    design = np.empty((block.n_rows, 0)) if block.design is None else block.design
    own = level_of(design, columns, coded)
    e = np.array(location(block), dtype=np.float64)
    sums = level_sums(e, own, len(coded), block.weight)
    return sums, level_ranges(block.X, own, len(coded), block.weight)


def _merge(one: tuple[Sums, Sums], two: tuple[Sums, Sums]) -> tuple[Sums, Sums]:
    return merge_sums(one[0], two[0]), merge_ranges(one[1], two[1])


def _padded(values: Array, columns: slice, width: int) -> Array:
    out = np.zeros((width, values.shape[1]))
    out[columns] = values
    return out


def _place(design: Design, factor: Term, level: Any) -> int:
    """Return which of a factor's levels `level` is."""
    known = design.levels_of(design.column_of(factor))
    assert known is not None
    if level not in known.levels:
        raise ValueError(
            f"reference={level!r} is no level of {factor.name}{did_you_mean(str(level), known.labels)}; there are: "
            f"{', '.join(map(repr, known.levels[:12]))}"
        )
    return known.levels.index(level)


def _only_factor(design: Design) -> Term:
    removed = [term for term in design.terms if not term.preserved]
    factors = [term for term in removed if term.kind == "factor"]
    if len(factors) != 1:
        raise ValueError(
            f"shrinkage='eb' shrinks the effects of one factor, the batch, but {len(factors)} factors are removed "
            f"({', '.join(term.name for term in removed) or 'nothing'}); name one in the formula, as C(batch); batches "
            "from several columns go into one column first"
        )
    return factors[0]
