"""Levels that fit didn't see: what their effects are expected to be, before and after a few of their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.crossed_blup import RandomEffects, level_indicators
from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.later_batches import LaterBatches
from residmix.level_totals import LevelTotals, with_known_and_unseen
from residmix.moments.absorbed import FactorMoments
from residmix.moments.affine import Affine, WithEffects
from residmix.moments.linear import LinearMoments
from residmix.moments.solve import LinearFit
from residmix.moments.solve_absorbed import FactorFit
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.scale import Scale
from residmix.sources.table import Table

__all__ = [
    "LevelPrior",
    "NewLevelSums",
    "NewLevels",
    "SpreadPrior",
    "adapted",
    "known_level_rows",
    "level_prior",
    "merge_sums",
    "refuse_new_levels",
    "removed_factors",
    "spread_prior",
    "term_prior",
    "with_new_levels",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LevelPrior:
    r"""What the levels of one factor that were seen tell of one that wasn't: :math:`u \sim N(\mu, \tau^2)`.

    Attributes
    ----------
    mean : ndarray (d,)
        :math:`\mu`, relative to the average of the levels, each counting alike.
    ratio : ndarray (d,)
        :math:`\sigma^2 / \tau^2`, variance of the noise over that of the levels; infinite where levels don't differ
        more than noise lets them.
    """

    mean: Array
    ratio: Array


@dataclass(frozen=True)
class SpreadPrior:
    r"""What the known levels tell of the spread of a further one: :math:`\log f \sim N(\mu, \tau^2)`.

    Attributes
    ----------
    prior : LevelPrior
        Of the log standard deviation, relative to the average level; the ratio is :math:`1 / \tau^2`.
    variance : ndarray (d,)
        Variance at the average level; 0 for features whose spread is left alone.
    """

    prior: LevelPrior
    variance: Array


@dataclass(frozen=True)
class NewLevels:
    r"""Effects of unseen levels of one factor.

    A level with n rows whose mean, less everything else that was fitted, lies :math:`\bar r` from the average level has
    the effect

    .. math:: \hat u = \mu + \frac{n}{n + \sigma^2/\tau^2} (\bar r - \mu),

    its expectation given the rows (Robinson, Statistical Science 6, 1991); without rows it is :math:`\mu`.

    Of the spread, :math:`v = \log f` has the estimate

    .. math:: \hat v = \tfrac12 \left(\log \frac{s^2}{\sigma^2} - \psi(\nu/2) + \log(\nu/2)\right), \quad
        \operatorname{Var} \hat v = \tfrac14 \psi'(\nu/2),

    with the variance :math:`s^2` of the rows about their mean, on :math:`\nu = n - 1` degrees of freedom, after the
    other effects on the spread; these are the mean and the variance of the logarithm of a :math:`\chi^2_\nu` (Smyth,
    Stat. Appl. Genet. Mol. Biol. 3, 2004, section 6.2). It is shrunk in the same way, by the variance :math:`\tau^2`
    of v over the known levels.

    Attributes
    ----------
    prior : LevelPrior
    totals : LevelTotals
        Of levels that rows were seen of since.
    spread : SpreadPrior or None
    """

    prior: LevelPrior
    totals: LevelTotals
    spread: SpreadPrior | None = None

    @classmethod
    def none(cls, prior: LevelPrior, spread: SpreadPrior | None = None) -> NewLevels:
        """Return what is known before any rows."""
        return cls(prior, LevelTotals.none(len(prior.mean)), spread)

    @property
    def labels(self) -> tuple[Any, ...]:
        return self.totals.labels

    @property
    def weight(self) -> Array:
        return self.totals.weight

    @property
    def mean(self) -> Array:
        return self.totals.mean

    def effects(self, *, shrink: bool) -> Array:
        """Return effects (L + 2, d) beyond the average level's: of each level, of any other unseen one, of known ones.

        `shrink` says whether a level without rows gets the prior's mean or the average level's effect.
        """
        return _expected(self.prior, self.weight, self.mean, shrink)

    def spreads(self, *, shrink: bool) -> Array | None:
        """Return changes (L + 2, d) of the log standard deviation, as `effects`; None if no spread is removed."""
        if self.spread is None:
            return None
        degrees, within, variance = self.weight - 1.0, self.totals.within, self.spread.variance
        known = (degrees > 0) & (within > 0) & (variance > 0)
        ratio = np.where(known, within, 1.0) / np.where(known, degrees * variance, 1.0)
        bias, weight = _log_variance(np.where(known, degrees, 1.0))
        return _expected(self.spread.prior, np.where(known, weight, 0.0), 0.5 * np.log(ratio) - bias, shrink)

    def seen(self, labels: tuple[Any, ...], sums: Array) -> NewLevels:
        """Return these levels after further rows."""
        return replace(self, totals=self.totals.seen(labels, sums))


def _expected(prior: LevelPrior, weight: Array, estimate: Array, shrink: bool) -> Array:
    # an infinite ratio gives a share of 0, as does a weight of 0 beside a ratio of 0
    share = weight / np.where(weight > 0, weight + prior.ratio, 1.0)
    own = prior.mean + share * (estimate - prior.mean)
    return with_known_and_unseen(own, prior.mean if shrink else np.zeros_like(prior.mean))


def _log_variance(degrees: Array) -> tuple[Array, Array]:
    """Return by how much half the log of a variance estimate is too large, and 1 over its variance."""
    from scipy.special import digamma, polygamma

    return 0.5 * (digamma(degrees / 2) - np.log(degrees / 2)), 4.0 / polygamma(1, degrees / 2)


def level_prior(effects: Array, weight: Array, noise: Array) -> LevelPrior:
    r"""Estimate the distribution that the effects of levels come from.

    With :math:`\hat u_l \sim N(u_l, \sigma^2 / n_l)` and :math:`w_l = 1 / (\tau^2 + \sigma^2 / n_l)`, the variance
    solves

    .. math:: \sum_l w_l (\hat u_l - \mu)^2 = L - 1, \quad \mu = \sum_l w_l \hat u_l / \sum_l w_l,

    and is 0 if the sum is smaller even then.

    Parameters
    ----------
    effects : ndarray (L, d)
        Estimated effects of the levels.
    weight : ndarray (L, d)
        Rows of each.
    noise : ndarray (d,)
        :math:`\sigma^2`.

    References
    ----------
    Paule and Mandel, J. Res. Natl. Bur. Stand. 87, 1982; that it is the empirical Bayes estimate: Morris, J. Am. Stat.
    Assoc. 78, 1983. Newton's steps from 0 rise to the root, as the sum is convex: DerSimonian and Kacker, Contemp.
    Clin. Trials 28, 2007.
    """
    have = weight > 0
    degrees = have.sum(axis=0) - 1.0
    # a noise of 0 would make weights infinite: one that can't matter stands for it
    noise = np.maximum(noise, 1e-30 * (1.0 + effects.max(axis=0) - effects.min(axis=0)) ** 2)
    variance = np.where(have, noise / np.where(have, weight, 1.0), np.inf)
    tau2 = np.zeros(len(noise))
    for _ in range(100):
        w = 1.0 / (tau2 + variance)
        mean = (w * effects).sum(axis=0) / np.maximum(w.sum(axis=0), 1e-300)
        squared = (effects - mean) ** 2
        excess = (w * squared).sum(axis=0) - degrees
        slope = (w**2 * squared).sum(axis=0)
        step = np.where((excess > 0) & (degrees > 0), excess / np.maximum(slope, 1e-300), 0.0)
        if not (step > 1e-13 * tau2).any():
            break
        tau2 += step
    with np.errstate(divide="ignore"):
        return LevelPrior(mean, np.where(tau2 > 0, noise / tau2, np.inf))


def removed_factors(design: Design) -> list[Term]:
    """Return the main effects of factors that are removed."""
    return [term for term in design.terms if term.kind in ("factor", "absorbed") and not term.preserved]


def term_prior(
    design: Design,
    term: Term,
    fit: LinearFit,
    moments: LinearMoments | FactorMoments,
    random: RandomEffects | None = None,
) -> LevelPrior:
    """Return the prior of a factor's levels from a fit; `random` are its effects if they were random ones already.

    Raises
    ------
    ValueError
        If fewer than two levels were seen.
    """
    if random is not None:
        # predicted effects are about their own expectation, which is where the average level lies
        return LevelPrior(np.zeros(len(random.ratio)), np.where(random.ratio > 1e300, np.inf, random.ratio))
    effects, weight = _estimated(design, term, fit, moments)
    if len(effects) < 2:
        raise ValueError(f"what unseen levels of {term.name} are like can't be told from one level")
    degrees = fit.residual_degrees
    noise = np.where(degrees > 0, fit.rss / np.where(degrees > 0, degrees, 1.0), 0.0)
    return level_prior(effects - effects.mean(axis=0), weight, noise)


def spread_prior(
    design: Design, term: Term, fit: LinearFit, moments: LinearMoments | FactorMoments, scale: Scale
) -> SpreadPrior:
    """Return what the known levels tell of the spread of a further one."""
    degrees = fit.residual_degrees
    variance = np.where(degrees > 0, fit.rss / np.where(degrees > 0, degrees, 1.0), 0.0)
    # features that don't vary somewhere keep their spread, and so do those of new levels
    variance = np.where((scale.intercept == 0) & (scale.coef == 0).all(axis=0), 0.0, variance)
    effects = known_level_rows(design, term) @ scale.coef[term.columns]
    rows = _estimated(design, term, fit, moments)[1]
    bias, weight = _log_variance(np.maximum(rows - 1.0, 1e-3))
    deviations = effects - effects.mean(axis=0) - bias
    prior = level_prior(deviations, np.where(rows > 1, weight, 0.0), np.ones_like(variance))
    nothing = (variance == 0) | ((rows > 1).sum(axis=0) < 2)
    return SpreadPrior(LevelPrior(np.where(nothing, 0.0, prior.mean), np.where(nothing, np.inf, prior.ratio)), variance)


def known_level_rows(design: Design, term: Term) -> Array:
    """Return the design columns (L, columns) of each level of a factor that isn't a missing value."""
    return design.level_rows(term)[: _n_known(design, term)]


def _n_known(design: Design, term: Term) -> int:
    levels = design.levels_of(design.column_of(term))
    assert levels is not None
    return len(levels.levels)


def _estimated(
    design: Design, term: Term, fit: LinearFit, moments: LinearMoments | FactorMoments
) -> tuple[Array, Array]:
    """Return estimated effects and weights (L, d) of a factor's levels, missing values not among them."""
    known = slice(0, _n_known(design, term))
    if term.factor is not None:
        assert isinstance(fit, FactorFit)
        weight = fit.level_weight[term.factor][known]
        seen = weight > 0
        effects = fit.effects[term.factor][known][seen]
        return effects, np.broadcast_to(weight[seen, None], (int(seen.sum()), len(fit.rss)))
    linear = moments.linear if isinstance(moments, FactorMoments) else moments
    levels = design.level_rows(term)
    start, turn = level_indicators(levels)
    shares = start + linear.mean_a[:, term.columns] @ turn
    weight = np.broadcast_to((linear.weight[:, None] * shares).T, (len(levels), len(fit.rss)))
    return (levels @ fit.coef[term.columns])[known], weight[known]


@dataclass(frozen=True)
class NewLevelSums:
    """``block -> sums of residuals by new level``, (5, L, d) for each factor; see :class:`LevelTotals`.

    Attributes
    ----------
    residual : Affine
        What takes everything else out.
    sizes : tuple of int
        Numbers of new levels of the factors, whose codes are the last ones of a block.
    scale : Scale or None
        The known effects on the spread.
    """

    residual: Affine
    sizes: tuple[int, ...]
    scale: Scale | None = None

    def __call__(self, block: Block) -> list[Array]:
        own = block.codes[len(block.codes) - len(self.sizes) :]
        new = [(codes >= 0) & (codes < size) for codes, size in zip(own, self.sizes, strict=True)]
        twice = np.sum(new, axis=0) > 1
        if twice.any():
            raise ValueError(
                f"row {block.start + int(np.argmax(twice))} has new levels of two factors, whose effects can't be told "
                "apart by it; adapt to one factor after the other, with rows whose other levels are known"
            )
        before = replace(block, codes=block.codes[: len(block.codes) - len(self.sizes)])
        out = np.asarray(self.residual(before), dtype=np.float64)
        w = np.ones(len(out)) if block.weight is None else block.weight
        precision = np.ones((1, 1))
        if self.scale is not None and block.design is not None:
            precision = self.scale.factor(block.design) ** -2.0
        precision = np.broadcast_to(precision, out.shape)
        found = []
        for codes, mine, size in zip(own, new, self.sizes, strict=True):
            indicator = (codes[mine][:, None] == np.arange(size)) * w[mine][:, None]
            have, sharp = np.isfinite(out[mine]), precision[mine]
            r = np.where(have, out[mine], 0.0)
            values = (have.astype(np.float64), r, have * sharp, r * sharp, r**2 * sharp)
            found.append(np.stack([indicator.T @ value for value in values]))
        return found


def merge_sums(one: list[Array], two: list[Array]) -> list[Array]:
    """Add the sums of other rows."""
    return [a + b for a, b in zip(one, two, strict=True)]


def with_new_levels(affine: Affine, effects: list[Array]) -> Affine:
    """Return the map for rows that have codes of unseen levels behind those of absorbed factors."""
    before = affine.effects if isinstance(affine, WithEffects) else ()
    return WithEffects(affine.origin_x, affine.origin_a, affine.coef, affine.constant, affine.sign, (*before, *effects))


def refuse_new_levels(estimator: Any, what: str) -> None:
    """Raise where levels have no effects."""
    if estimator is not None:
        raise ValueError(
            f"{what} belongs to least squares, which has effects of levels; with estimator= there are none"
        )


def adapted(
    design: Design | None,
    priors: Callable[[], dict[str, NewLevels | LaterBatches]],
    before: dict[str, NewLevels | LaterBatches],
    table: Table,
    rows: Callable[[Design], Rows],
    residual: Affine,
    scale: Scale | None,
) -> dict[str, NewLevels | LaterBatches]:
    """Return the new levels of all factors after the rows of a table.

    Parameters
    ----------
    design : Design or None
        As fitted.
    priors : callable
        What is expected of unseen levels, for factors that no rows of new levels were seen of before.
    before : dict
        New levels so far.
    rows : callable
        The rows of the table with another design.
    residual : Affine
        What takes out every effect, preserved ones too.
    scale : Scale or None
        Known effects on the spread.
    """
    terms = () if design is None else tuple(removed_factors(design))
    if design is None or not terms:
        raise ValueError("adapt learns new levels of factors, but no factor is removed")
    open_design = design.following({}, on_unknown="mean")
    found: dict[str, dict[Any, None]] = {}
    for chunk in table.chunks((*design.columns, *design.preserved_columns)):
        for column, strange in open_design.matrix(chunk, preserved=True).unknown_levels.items():
            found.setdefault(column, {}).update(dict.fromkeys(strange))
    labels = {
        term.name: tuple(sorted(found[design.column_of(term)], key=str))
        for term in terms
        if found.get(design.column_of(term))
    }
    if not labels:
        known = ", ".join(repr(term.name) for term in terms)
        raise ValueError(f"adapt learns levels that fit didn't see, but all levels of {known} here are known")
    step = NewLevelSums(residual, tuple(len(new) for new in labels.values()), scale)
    sums = fold(rows(design.following(labels, on_unknown="mean")), step, merge_sums)
    after = {**priors(), **before}
    for (name, new), total in zip(labels.items(), sums, strict=True):
        after[name] = after[name].seen(new, total)
    return after
