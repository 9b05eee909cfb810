"""The prior distribution of the effects of a new level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.random.predicted import RandomEffects, level_indicators
from residmix.effects.spread.scale import Scale
from residmix.moments.linear import Moments
from residmix.moments.solving.solve import LinearFit

__all__ = [
    "LevelPrior",
    "SpreadPrior",
    "level_estimates",
    "level_prior",
    "log_variance",
    "removed_factors",
    "spread_prior",
    "term_prior",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LevelPrior:
    r"""Prior of the effect of a new level, from the known levels of its factor: :math:`u \sim N(\mu, \tau^2)`.

    Attributes
    ----------
    mean : ndarray (d,)
        :math:`\mu`, relative to the unweighted average of the levels.
    ratio : ndarray (d,)
        :math:`\sigma^2 / \tau^2`, variance of the noise over that of the levels; infinite where levels differ no more
        than noise explains.
    """

    mean: Array
    ratio: Array


@dataclass(frozen=True)
class SpreadPrior:
    r"""Prior of the spread of a new level, from the known levels: :math:`\log f \sim N(\mu, \tau^2)`.

    Attributes
    ----------
    prior : LevelPrior
        Of the log standard deviation, relative to the average level; the ratio is :math:`1 / \tau^2`.
    variance : ndarray (d,)
        Variance at the average level; 0 for features whose spread is left alone.
    """

    prior: LevelPrior
    variance: Array


def log_variance(degrees: Array) -> tuple[Array, Array]:
    """Return the bias of half the log of a variance estimate, and the inverse of its variance."""
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
    # in units, powers of 2, in which the larger of the effects' range and the noise is about 1
    size = np.maximum(np.ptp(effects, axis=0), np.sqrt(noise))
    unit = np.exp2(np.round(np.log2(np.where(size > 0, size, 1.0))))
    # a noise of 0 would make weights infinite: one that can't matter stands for it
    effects, noise = effects / unit, np.maximum(noise / unit / unit, 1e-30)
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
        return LevelPrior(mean * unit, np.where(tau2 > 0, noise / tau2, np.inf))


def removed_factors(design: Design) -> list[Term]:
    """Return the main effects of factors that are removed."""
    return [term for term in design.terms if term.kind in ("factor", "absorbed") and not term.preserved]


def term_prior(
    design: Design,
    term: Term,
    fit: LinearFit,
    moments: Moments,
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
    effects, weight = level_estimates(design, term, fit, moments)
    if len(effects) < 2:
        raise ValueError(
            f"the variance between levels of {term.name!r} can't be estimated from one level; use on_unknown='mean'"
        )
    degrees = fit.residual_degrees
    noise = np.where(degrees > 0, fit.rss / np.where(degrees > 0, degrees, 1.0), 0.0)
    return level_prior(effects - effects.mean(axis=0), weight, noise)


def spread_prior(design: Design, term: Term, fit: LinearFit, moments: Moments, scale: Scale) -> SpreadPrior:
    """Return the prior of the spread of a new level."""
    degrees = fit.residual_degrees
    variance = np.where(degrees > 0, fit.rss / np.where(degrees > 0, degrees, 1.0), 0.0)
    # features that don't vary somewhere keep their spread, and so do those of new levels
    variance = np.where((scale.intercept == 0) & (scale.coef == 0).all(axis=0), 0.0, variance)
    effects = design.known_level_rows(term) @ scale.coef[term.columns]
    rows = level_estimates(design, term, fit, moments)[1]
    bias, weight = log_variance(np.maximum(rows - 1.0, 1e-3))
    deviations = effects - effects.mean(axis=0) - bias
    prior = level_prior(deviations, np.where(rows > 1, weight, 0.0), np.ones_like(variance))
    nothing = (variance == 0) | ((rows > 1).sum(axis=0) < 2)
    return SpreadPrior(LevelPrior(np.where(nothing, 0.0, prior.mean), np.where(nothing, np.inf, prior.ratio)), variance)


def level_estimates(design: Design, term: Term, fit: LinearFit, moments: Moments) -> tuple[Array, Array]:
    """Return estimated effects and weights (L, d) of a factor's levels, missing values not among them."""
    known = slice(0, design.n_known_levels(term))
    if term.factor is not None:
        weight = fit.level_weight[term.factor][known]
        seen = weight > 0
        effects = fit.effects[term.factor][known][seen]
        have = ~np.isnan(effects)
        average = np.where(have, effects, 0.0).sum(axis=0) / np.maximum(have.sum(axis=0), 1)
        return np.where(have, effects, average), np.where(have, weight[seen, None], 0.0)
    linear = moments.linear
    levels = design.level_rows(term)
    start, turn = level_indicators(levels)
    shares = start + linear.mean_a[:, term.columns] @ turn
    weight = np.broadcast_to((linear.weight[:, None] * shares).T, (len(levels), len(fit.rss)))
    return (levels @ fit.coef[term.columns])[known], weight[known]
