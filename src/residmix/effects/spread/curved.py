"""The spread of features as a smooth function of the metadata: a log-linear model with penalised splines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.design.design import Design
from residmix.design.terms import Term
from residmix.effects.marginal import marginal
from residmix.effects.mean.curved import Coordinates, coordinates
from residmix.effects.mean.reml import chunks, known_noise_ratios, membership, solved
from residmix.effects.pooled.by_level import Still
from residmix.effects.random.predicted import generalised_inverse
from residmix.effects.spread import scale as passes
from residmix.effects.spread.leverages import Leverages
from residmix.effects.spread.scale import Location, LogVariances
from residmix.effects.spread.steps import Pairs, bounded, pinv, spread_of
from residmix.moments.linear import LinearMoments
from residmix.rows.rows import Rows, fold
from residmix.rows.threads import one_blas_thread

__all__ = ["fit_curved_log_variances"]

Array = NDArray[np.float64]

# Passes in which smoothness moves with the curves; then it stays, so that there is one optimum.
_FREE_PASSES, _STEPS, _ROUGHLY = 8, 2, 1e-2
_MAX_PASSES, _SETTLED = 50, 1e-7
# Standard deviations of bends that are as good as 0.
_STRAIGHT = 1e-10


def fit_curved_log_variances(
    rows: Rows,
    location: Location,
    moments: LinearMoments,
    group: NDArray[np.int64],
    design: Design,
    random: Sequence[Term] = (),
    *,
    terms: Sequence[Term] | None = None,
    still: tuple[Still, ...] = (),
) -> LogVariances:
    r"""Fit log variances that are linear in the design, with penalties on curves and on random effects.

    The penalty is :math:`\sum_t \lambda_t \int f_t''(u)^2 du` for curves, and :math:`\lambda_t` times the sum of
    squared effects for the levels of `random` factors. Scoring as in
    :func:`residmix.effects.spread.scale.fit_log_variances`: each step is a penalised least-squares fit of the working
    response :math:`\eta + u / (1 - h) - 1`, whose variance is known to be :math:`2 / (w (1 - h))`, so that each
    feature's :math:`\lambda_t` come from the restricted likelihood of the same sums. Parameters and result are those of
    that function; `terms` are those that the spread depends on, all by default.

    References
    ----------
    Breslow and Clayton, "Approximate inference in generalized linear mixed models", JASA 88, 1993.
    Rigby and Stasinopoulos, "Automatic smoothing parameter selection in GAMLSS", SMMR 23, 2014.
    """
    mean, sd = passes._centre(rows)
    view = partial(passes._view, location, mean, sd, still)
    gram, squares, seen, size = fold(rows, partial(passes._sums, view), passes._add)
    inverse = pinv(gram, 1e-13)
    varying = squares > (64 * np.finfo(np.float64).eps) ** 2 * size
    pooled = np.where(varying, squares / np.maximum(seen, 1e-300), 1.0)
    (free_gram,) = fold(rows, partial(passes._free_gram, mean, sd, Leverages(inverse[None])), passes._add)
    leverages = Leverages.of(gram, moments, group, mean, sd)

    where = coordinates(design, random, terms)
    if (changed := marginal(design, moments, random)) is not None:
        back = np.linalg.inv(changed[int(np.argmax(moments.weight))])
        where = replace(where, fixed=back @ where.fixed, turn=back @ where.turn)
    smoother = _Smoother(where, sd, 0.5 * free_gram, rows.n_features)
    coef = _settled(rows, partial(passes._likelihood, view, leverages, pooled), smoother, gram, Pairs.of(mean, sd))
    return LogVariances(coef, mean, sd, rows, view, varying, squares, gram[1:, 1:])


def _settled(rows: Rows, sums: Callable[..., Any], smoother: _Smoother, gram: Array, pairs: Pairs) -> Array:
    """Return the coefficients (q + 1, d): by scoring, and once smoothness has settled by Newton's method."""
    coef = np.zeros((len(gram), rows.n_features))
    for _ in range(_FREE_PASSES):
        _, score, _ = fold(rows, partial(sums, coef, None), passes._add)
        step = bounded(smoother.target(coef, 0.5 * score) - coef, gram)
        coef = coef + step
        if spread_of(step, gram).max(initial=0.0) < _ROUGHLY:
            break
    coef = smoother.without_faint(coef)
    step, best = np.zeros_like(coef), np.full(rows.n_features, -np.inf)
    for _ in range(_MAX_PASSES):
        trial = coef + step
        likelihood, score, observed = fold(rows, partial(sums, trial, pairs), passes._add)
        likelihood -= smoother.penalty(trial)
        # Rounding of a sum of many terms must not look like a fall.
        better = likelihood >= best - 1e-12 * np.abs(np.where(np.isfinite(best), best, 0.0))
        coef[:, better], best[better] = trial[:, better], likelihood[better]
        fresh = bounded(smoother.newton(trial, 0.5 * score, 0.5 * observed, pairs), gram)
        step = np.where(better, fresh, 0.5 * step)
        moving = spread_of(step, gram)
        if moving.max(initial=0.0) < _SETTLED:
            break
    else:
        passes.tell_unsettled(moving, _SETTLED, _MAX_PASSES)
    return np.asarray(coef + step)


class _Smoother:
    """Penalised weighted least squares of a working response, in the columns [1, standardised design]."""

    def __init__(self, where: Coordinates, sd: Array, information: Array, d: int) -> None:
        q, f = where.fixed.shape
        self.parts = where.parts
        self.fixed = np.zeros((q + 1, f + 1))
        self.fixed[0, 0] = 1.0
        self.fixed[1:, 1:] = where.fixed * sd[:, None]
        self.turn = np.vstack([np.zeros(where.turn.shape[1]), where.turn * sd[:, None]])
        self.back = np.linalg.pinv(np.hstack([self.fixed, self.turn]))[f + 1 :]
        self.information = information
        self.free = generalised_inverse(self.fixed.T @ information @ self.fixed)
        self.beside = self.turn.T @ information @ self.fixed
        self.own = self.turn.T @ information @ self.turn - self.beside @ self.free @ self.beside.T
        self.ratios = np.ones((len(self.parts), d))

    def penalty(self, coef: Array) -> Array:
        """Return half the weighted roughness (d,)."""
        return np.asarray(0.5 * np.sum(self._bends(coef) ** 2, axis=0))

    def target(self, coef: Array, score: Array) -> Array:
        """Choose the smoothness, and return the coefficients of the next scoring step."""
        products = self.information @ coef + score
        fixed = self.fixed.T @ products
        turned = self.turn.T @ products - self.beside @ (self.free @ fixed)
        own = self.own[None]
        with one_blas_thread():
            self.ratios = known_noise_ratios(own, turned, self.parts, self.ratios, _STEPS)
            u = solved(own, turned, np.ones(coef.shape[1]), self.ratios, self.parts).effects
        return np.asarray(self.fixed @ (self.free @ (fixed - self.beside.T @ u)) + self.turn @ u)

    def without_faint(self, coef: Array) -> Array:
        """Return the coefficients with the curvature of straight curves, which is rounding error, set to 0."""
        u = self.back @ coef
        return np.asarray(coef - self.turn @ np.where(self._root() > _STRAIGHT, 0.0, u))

    def newton(self, coef: Array, score: Array, observed: Array, pairs: Pairs) -> Array:
        """Return Newton's step (q + 1, d), given the sums of `pairs` (d, p) in the observed information."""
        width, (q, d) = self.fixed.shape[1], coef.shape
        root, bends, step = self._root(), self._bends(coef), np.empty_like(coef)
        for at in chunks((q, d)):
            information = pairs.information(observed[at])
            to = np.concatenate(
                [
                    np.broadcast_to(self.fixed, (len(information), *self.fixed.shape)),
                    self.turn * root[:, at].T[:, None],
                ],
                axis=2,
            )
            M = np.swapaxes(to, 1, 2) @ information @ to
            diagonal = np.einsum("cii->ci", M)
            diagonal[:, :width] *= 1.0 + 1e-10
            diagonal[:, :width] += 1e-300 + 1e-12 * diagonal[:, :width].max(axis=1, keepdims=True)
            diagonal[:, width:] += 1.0
            slope = np.einsum("cqi,qc->ci", to, score[:, at])
            slope[:, width:] -= bends[:, at].T
            try:
                along = np.linalg.solve(M, slope[:, :, None])[:, :, 0]
            except np.linalg.LinAlgError:  # a spread that has run away leaves no information
                along = np.einsum("cij,cj->ci", np.linalg.pinv(M, rcond=1e-14, hermitian=True), slope)
            step[:, at] = np.einsum("cqi,ci->qc", to, along)
        return step

    def _root(self) -> Array:
        """Return the prior standard deviation of each bend, (r, d)."""
        return np.sqrt(membership(self.parts) @ self.ratios)

    def _bends(self, coef: Array) -> Array:
        """Return the bends in units of it; none of curves that are straight."""
        root = self._root()
        return np.where(root > _STRAIGHT, self.back @ coef / np.where(root > _STRAIGHT, root, 1.0), 0.0)
