r"""p-values of rows: the probability that a row from the mixture is less likely than a given one.

.. math:: P(x) = \Pr[p(Y) \le p(x)], \qquad Y \sim p = \sum_k \pi_k p_k

For one component this is the upper tail of its squared distance: chi-squared, or F for Student's t. For several it is a
sum over draws :math:`Y = \mu_k + R L_k U`, R stratified far into the tails and U a uniform direction
(:mod:`residmix.mixture.after.draws`): p-values of 1e-20 have the same relative accuracy as those of 0.1. If rows come
from the mixture, p-values are uniform. The density of the noise is constant in its box, so rows there are ordered by
the density of the other components.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp

from residmix.mixture.after.draws import directions, radii
from residmix.mixture.given.by_group import groups_of
from residmix.mixture.given.gate import log_priors
from residmix.mixture.iteration.estep import Problem, log_joint
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams, marginal
from residmix.mixture.robust.tails import has_tails, tail_joint
from residmix.rows.block import Block

__all__ = ["OutlierTest"]

Floats = NDArray[np.float64]

# Draws that a table is made of; and where proportions differ between rows, so that each row needs them all.
DRAWS = 1 << 16
DRAWS_EACH = 1 << 12
# Entries of draws x rows that are held at once.
ENTRIES = 1 << 22


@dataclass
class OutlierTest:
    """Block of rows to p values (b,).

    Attributes
    ----------
    problem : Problem
        Parameters, ready for rows.
    groups : dict
        Tests of the groups of rows that have covariances of their own, made as they are met.
    tables : dict
        Made as patterns of missing values are met.
    draws : int
        For each table, where proportions are the same in all rows.
    """

    problem: Problem
    tables: dict[bytes, _Draws] = field(default_factory=dict)
    groups: dict[int, OutlierTest] = field(default_factory=dict)
    draws: int = DRAWS

    def __call__(self, block: Block) -> Floats:
        params = self.problem.params
        if self.problem.groups:
            return self._by_group(block)
        density = logsumexp(block_log_joint(self.problem, block)[:, : params.n_components], axis=1)
        if params.by_component:
            return self._by_row(block, density)
        prior = None if params.gate is None else log_priors(block.design, params.gate.coef)
        there, which = ~np.isnan(block.X), np.zeros(len(block.X), dtype=np.intp)
        patterns = np.ones((1, block.X.shape[1]), dtype=bool)
        if not there.all():
            patterns, which = np.unique(there, axis=0, return_inverse=True)
        found = np.ones(len(block.X))
        for number, pattern in enumerate(patterns):
            rows = np.flatnonzero(which.ravel() == number)
            if pattern.any():
                draws = self._draws(pattern)
                found[rows] = draws.at(density[rows]) if prior is None else draws.given(density[rows], prior[rows])
        return found

    def _by_group(self, block: Block) -> Floats:
        found = np.empty(block.n_rows)
        for g, rows in groups_of(self.problem.params, block):
            test = self.groups.setdefault(g, OutlierTest(self.problem.groups[g], draws=self.draws))
            found[rows] = test(block.select(rows))
        return found

    def _by_row(self, block: Block, density: Floats) -> Floats:
        """Return p values where each design row u has a mixture of its own, of means mu_k + D_k' u."""
        params = self.problem.params
        coef, design = np.asarray(params.coef), np.asarray(block.design)
        every, which = np.unique(design, axis=0, return_inverse=True)
        found = np.empty(len(density))
        for number, u in enumerate(every):
            weights = params.weights if params.gate is None else np.exp(log_priors(u[None], params.gate.coef)[0])
            means = params.means + np.einsum("q,kqd->kd", params.columns_of(u[None])[0], coef)
            at = Problem.of(replace(params, weights=weights, means=means, coef=None, gate=None))
            rows = which.ravel() == number
            there = ~np.isnan(block.X[rows])
            test, own = OutlierTest(at, draws=DRAWS_EACH), np.ones(len(there))
            for pattern in np.unique(there, axis=0):
                of_pattern = (there == pattern).all(axis=1)
                if pattern.any():
                    own[of_pattern] = test._draws(pattern).at(density[rows][of_pattern])
            found[rows] = own
        return found

    def _draws(self, pattern: NDArray[np.bool_]) -> _Draws:
        key = pattern.tobytes()
        if key not in self.tables:
            params = self.problem.params
            plain = replace(params, coef=None, gate=None)
            if not pattern.all():
                plain = marginal(plain, np.flatnonzero(pattern).tolist())
            self.tables[key] = _Draws.of(plain, self.draws if params.gate is None else DRAWS_EACH)
        return self.tables[key]


@dataclass(frozen=True)
class _Draws:
    """Draws of a mixture, and how likely they are.

    Attributes
    ----------
    params : MixtureParams
    densities : ndarray (N, K)
        Logarithms of the components' densities at the draws, weights aside.
    component : ndarray of int (N,)
        Of the draw; K for noise.
    share : ndarray (N,)
        Probability that a draw stands for within its component.
    lowest, below : ndarray (N,)
        Log-densities in order, and the probability of one that is at most so high; for constant proportions.
    """

    params: MixtureParams
    densities: Floats
    component: NDArray[np.intp]
    share: Floats
    lowest: Floats
    below: Floats

    @classmethod
    def of(cls, params: MixtureParams, n: int) -> _Draws:
        random, K, d = np.random.default_rng(0), params.n_components, params.n_features
        each, roots = max(n // K, 1 << 10), np.linalg.cholesky(params.full_covariances())
        points, shares = [], []
        for k in range(K):
            radius, share = radii(each, d, None if params.dof is None else float(params.dof[k]))
            points.append(params.means[k] + (radius[:, None] * directions(each, d, random)) @ roots[k].T)
            shares.append(share)
        if params.noise is not None:
            points.append(random.uniform(params.noise[1][0], params.noise[1][1], size=(each, d)))
            shares.append(np.full(each, 1 / each))
        component, share = np.repeat(np.arange(len(points)), each), np.concatenate(shares)
        densities = _densities(np.concatenate(points), params)
        value = logsumexp(densities + params.log_weights, axis=1)
        order = np.argsort(value, kind="stable")
        below = np.cumsum((share * _with_noise(params.weights[None], params)[0, component])[order])
        return cls(params, densities, component, share, value[order], below / below[-1])

    def at(self, density: Floats) -> Floats:
        """Return the probability of a log-density that is at most so high."""
        if self.params.n_components == 1 and self.params.noise is None:
            return self._exact(density)
        place = np.searchsorted(self.lowest, density, side="right")
        # what is farther out than all draws is at most as probable as the outermost
        found: Floats = self.below[np.maximum(place, 1) - 1]
        return found

    def _exact(self, density: Floats) -> Floats:
        params, d = self.params, self.params.n_features
        lost = np.maximum(_densities(params.means, params)[0, 0] - density, 0.0)
        if params.dof is None:
            return np.asarray(stats.chi2.sf(2 * lost, d))
        nu = float(params.dof[0])
        return np.asarray(stats.f.sf(nu * np.expm1(2 * lost / (nu + d)) / d, d, nu))

    def given(self, density: Floats, log_prior: Floats) -> Floats:
        """Return the same where each row has proportions of its own, (b, K)."""
        if self.params.n_components == 1 and self.params.noise is None:
            return self._exact(density)
        N, found = len(self.share), np.empty(len(density))
        largest = self.densities.max(axis=1)
        scaled = np.exp(self.densities - largest[:, None])
        shares = np.zeros((self.component.max() + 1, N))
        shares[self.component, np.arange(N)] = self.share
        for start in range(0, len(density), max(ENTRIES // N, 1)):
            part = slice(start, start + max(ENTRIES // N, 1))
            prior = np.exp(log_prior[part])
            below = scaled @ prior.T <= np.exp(np.minimum(density[part] - largest[:, None], 700.0))
            found[part] = np.einsum("bk,kb->b", _with_noise(prior, self.params), shares @ below)
        return np.minimum(found, 1.0)


def _with_noise(weights: Floats, params: MixtureParams) -> Floats:
    """Return proportions with that of the noise, if there is any, as one more column."""
    if params.noise is None:
        return weights
    noise = params.noise[0]
    return np.hstack([weights * (1 - noise), np.full((len(weights), 1), noise)])


def _densities(points: Floats, params: MixtureParams) -> Floats:
    problem, prior = Problem.of(params), np.zeros((len(points), params.n_components))
    if has_tails(params):
        return tail_joint(problem, points, prior, np.empty((len(points), 0)))[0][:, : params.n_components]
    return log_joint(points, problem, log_prior=prior)
