r"""ECM where covariances differ by group of rows: means and effects of all groups, covariances of each.

.. math:: x_i \sim N(\mu_k + D_k' u_i, \Sigma_{g(i) k})

Given responsibilities and covariances, means and coefficients are one generalised least-squares fit of x on
:math:`v = [u, e_k]` over all groups and components; given these, the covariances of a group are those of its rows
about them, by family. Both are conditional maximisations (Meng & Rubin 1993, Biometrika 80), so the likelihood never
falls. The class of models is that of flexmix with groups' own variances and of MoDaH.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.given.by_group import ByGroup, averaged, groups_of
from residmix.mixture.given.coefficients import solve_generalised
from residmix.mixture.iteration.estep import MixtureMoments, Problem
from residmix.mixture.iteration.mstep import DEAD_ROWS, with_ridge
from residmix.mixture.params import MixtureParams, factor_covariances
from residmix.rows.block import Block

__all__ = ["grouped_joint", "grouped_moments", "grouped_step", "over_groups", "with_groups"]

Floats = NDArray[np.float64]

# Rounds of (means and coefficients, covariances) per pass over the data.
CYCLES = 2


def grouped_moments(problem: Problem, block: Block, step: Callable[[Problem, Block], MixtureMoments]) -> MixtureMoments:
    """Return the moments of a block by group and component: arrays of G K, group by group."""
    params, G = problem.params, len(problem.groups)
    K, m = params.n_components, params.n_features + block.design.shape[1]
    found = MixtureMoments(np.zeros(G * K), np.zeros((G * K, m)), np.zeros((G * K, m, m)), 0.0, 0.0, 0)
    for g, rows in groups_of(params, block):
        own, at = step(problem.groups[g], block.select(rows)), slice(g * K, (g + 1) * K)
        found.weight[at] += own.weight
        found.shift[at] += own.shift
        found.scatter[at] += own.scatter
        found.log_likelihood, found.total = found.log_likelihood + own.log_likelihood, found.total + own.total
        found.rows += own.rows
        if own.gate is not None:
            if found.gate is None:
                found.gate = own.gate
            else:
                found.gate.merge(own.gate)
    return found


def grouped_joint(problem: Problem, block: Block, joint: Callable[[Problem, Block], Floats]) -> Floats:
    """Return log p(x, k) of a block's rows, (b, K)."""
    found = np.empty((block.n_rows, problem.params.n_components))
    for g, rows in groups_of(problem.params, block):
        found[rows] = joint(problem.groups[g], block.select(rows))
    return found


def over_groups(moments: MixtureMoments, n_components: int) -> MixtureMoments:
    """Return the moments of components whatever the group."""

    def summed(array: Floats) -> Floats:
        return np.asarray(array.reshape(-1, n_components, *array.shape[1:]).sum(axis=0))

    return replace(moments, weight=summed(moments.weight), shift=summed(moments.shift), scatter=summed(moments.scatter))


def with_groups(params: MixtureParams, share: Floats, group: NDArray[np.intp]) -> MixtureParams:
    """Return a mixture whose groups (G) all have the covariances that they shared."""
    covariances, factors = (np.repeat(part[None], len(share), axis=0) for part in (params.covariances, params.factors))
    return replace(params, by_group=ByGroup(covariances, factors, share, group))


def grouped_step(moments: MixtureMoments, params: MixtureParams, reg_covar: float | Floats) -> MixtureParams:
    """Return means, coefficients and covariances with a larger expected log-likelihood; gate and all else are kept.

    Raises
    ------
    SingularCovarianceError
        If a component's rows in a group don't span the space and `reg_covar` is 0.
    """
    by, (K, d) = params.by_group, params.means.shape
    assert by is not None
    r = moments.shift.shape[1] - d
    a, c, squares = _augmented(moments, r)
    factors, covariances = by.factors, by.covariances
    weight = moments.weight.reshape(-1, K)
    theta = np.zeros((K, r + 1, d))
    for _ in range(CYCLES):
        theta = _effects(a, c, _precisions(params, factors), params.by_component, K)
        covariances = _covariances(a, c, squares, theta, weight, moments, params, reg_covar)
        factors = np.stack([factor_covariances(own, params.family) for own in covariances])
    share = weight / moments.total
    pooled = averaged(covariances, share, params.family.kept)
    coef = params.coef
    if r:
        assert coef is not None
        coef = theta[:, :r] if params.by_component else coef + theta[0, :r]
    return replace(
        params,
        weights=weight.sum(axis=0) / weight.sum(),
        means=params.means + theta[:, r],
        covariances=pooled,
        factors=factor_covariances(pooled, params.family),
        coef=coef,
        by_group=replace(by, covariances=covariances, factors=factors, share=share),
    )


def _augmented(moments: MixtureMoments, r: int) -> tuple[Floats, Floats, Floats]:
    """Return the products of [u, 1] with itself and with x - mean_k, and of the latter, over the rows; (G K, ...)."""
    n, shift, scatter = moments.weight, moments.shift, moments.scatter
    a = np.empty((len(n), r + 1, r + 1))
    a[:, :r, :r], a[:, :r, r], a[:, r, :r], a[:, r, r] = scatter[:, :r, :r], shift[:, :r], shift[:, :r], n
    c = np.concatenate([scatter[:, :r, r:], shift[:, None, r:]], axis=1)
    return a / moments.total, c / moments.total, scatter[:, r:, r:] / moments.total


def _precisions(params: MixtureParams, factors: Floats) -> Floats:
    """Return the inverse covariances of groups and components, (G K, d, d)."""
    full = np.concatenate([params.family.full(own, *params.means.shape) for own in factors])
    return np.asarray(full @ np.swapaxes(full, 1, 2))


def _effects(a: Floats, c: Floats, precisions: Floats, by_component: bool, K: int) -> Floats:
    """Return coefficients and, last, what is added to the mean, of each component, (K, r + 1, d)."""
    r, d = a.shape[1] - 1, c.shape[2]
    if by_component or not r:
        return np.stack([solve_generalised(a[k::K], c[k::K], precisions[k::K]) for k in range(K)])
    wide, right = np.zeros((len(a), r + K, r + K)), np.zeros((len(a), r + K, d))
    wide[:, :r, :r], right[:, :r] = a[:, :r, :r], c[:, :r]
    for k in range(K):
        wide[k::K, :r, r + k], wide[k::K, r + k, :r] = a[k::K, :r, r], a[k::K, r, :r]
        wide[k::K, r + k, r + k], right[k::K, r + k] = a[k::K, r, r], c[k::K, r]
    found = solve_generalised(wide, right, precisions)
    return np.stack([np.vstack([found[:r], found[r + k]]) for k in range(K)])


def _covariances(
    a: Floats,
    c: Floats,
    squares: Floats,
    theta: Floats,
    weight: Floats,
    moments: MixtureMoments,
    params: MixtureParams,
    reg_covar: float | Floats,
) -> Floats:
    """Return the covariances of each group about new means, as the family keeps them; of cells without rows the old."""
    by, of, (K, d) = params.by_group, params.family, params.means.shape
    assert by is not None
    every = np.tile(theta, (len(weight), 1, 1))
    cross = np.swapaxes(every, 1, 2) @ c
    about = squares - cross - np.swapaxes(cross, 1, 2) + np.swapaxes(every, 1, 2) @ a @ every
    floor = DEAD_ROWS * moments.total / moments.rows
    found = []
    for g, rows in enumerate(weight):
        before = of.full(by.covariances[g], K, d)
        n = np.maximum(rows, floor)
        own = about[g * K : (g + 1) * K] * (moments.total / n)[:, None, None]
        own[rows <= floor] = before[rows <= floor]
        within = with_ridge(of.of_full(own, n), reg_covar)
        found.append(of.fit_with_parts(within, n, before if of.linked else None)[0])
    return np.stack(found)
