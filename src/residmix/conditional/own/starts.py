"""Where fits with effects by component begin: where a shared effect ends, matched groups, clusterwise regressions.

The first of these makes that such a fit is never less likely than the one with a shared effect. Where a component's
effect is as large as the distance between components, a shared effect finds other clusters; then mixtures of rows with
like metadata are matched (by what components look like, or by where they lie), and rows are assigned to whichever of
K regressions is nearest, again and again from many partitions (Spaeth 1979, "Clusterwise linear regression",
Computing 22). Short runs on a subsample decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from residmix.conditional.own.labels import own_params_of_labels
from residmix.conditional.starts import Group, Sought, best_of_short, constant_gate, gate_from, groups_of
from residmix.em.loop import EMState
from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError, params_as
from residmix.mixture.starts import subsample
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["own_starts", "with_own_effects"]

Floats = NDArray[np.float64]
State = EMState[MixtureParams]

# Rows of the subsample that partitions are tried on, partitions tried, and times that rows are assigned anew.
PARTITION_ROWS = 1500
PARTITIONS = 12
ASSIGNMENTS = 6
# Starts that go on after a few iterations, and those that are run to the end.
KEPT = (4, 2)


def with_own_effects(params: MixtureParams) -> MixtureParams:
    """Return a mixture whose components all have the effect that they shared."""
    assert params.coef is not None
    if params.coef.ndim == 3 or not params.n_design:
        return params
    return replace(params, coef=np.repeat(params.coef[None], params.n_components, axis=0))


def own_starts(
    rows: Rows,
    shared: list[MixtureParams],
    sought: Sought,
    *,
    more: bool,
    n_init: int,
    finish: Callable[[MixtureEM, MixtureParams], State],
) -> list[MixtureParams]:
    """Return where to begin, first where the likeliest fit with a shared effect ends.

    Parameters
    ----------
    rows : Rows
        Least-squares residuals and orthonormal design rows.
    shared : list of MixtureParams
        Where fits with a shared effect begin.
    sought : Sought
    more : bool
        Whether other starts are looked for, too: not where the user gave one.
    n_init, finish
        As in :func:`residmix.conditional.starts.conditional_starts`.
    """
    ended: list[State] = []
    for start in shared:
        # a start that collapses is reported where all starts are run, if none is left
        with suppress(SingularCovarianceError):
            ended.append(finish(MixtureEM(rows, sought.reg_covar), start))
    K, r = shared[0].n_components, shared[0].n_design
    if not ended:
        return [with_own_effects(start) for start in shared]
    best = max(ended, key=lambda state: state.log_likelihood).params
    if K == 1 or r == 0 or not more:
        return [with_own_effects(best)]
    block = subsample(rows, K, sought.random_state)
    found = [with_own_effects(start) for start in shared]
    found += _matched_groups(block, sought)
    for _ in range(n_init):
        found += _partitioned(block, sought)
    return [with_own_effects(best), *best_of_short(block, found, sought, KEPT)]


def _matched_groups(block: Block, sought: Sought) -> Iterator[MixtureParams]:
    """Yield the starts that come of mixtures of rows with like metadata, matched with the largest group's."""
    K = sought.n_components
    indices = groups_of(block.design, K, block.X.shape[1], sought.random_state)
    if len(indices) < 2:
        return
    with suppress(SingularCovarianceError):
        parts = [Group.of(block, index, sought, sought.covariance_type) for index in indices]
        first, *others = [part.mixture for part in parts]
        for cost in (_look, _place):
            order = [np.arange(K)] + [linear_sum_assignment(cost(first, other, sought.gated))[1] for other in others]
            mixtures = zip([first, *others], order, strict=True)
            means, weights = zip(*((one.means[own], one.weights[own]) for one, own in mixtures), strict=True)
            yield _regressed(parts, np.stack(means), np.stack(weights), sought)


def _look(one: MixtureParams, other: MixtureParams, gated: bool) -> Floats:
    """Return how different components are but for where they lie, (K, K): divergences of covariances and weights."""
    precisions = [params.full_factors() @ params.full_factors().swapaxes(1, 2) for params in (one, other)]
    covariances = one.full_covariances(), other.full_covariances()
    cost = np.einsum("kij,lji->kl", precisions[0], covariances[1])
    cost += np.einsum("kij,lji->kl", covariances[0], precisions[1])
    if not gated:
        first, second = (np.maximum(params.weights, 1e-12) for params in (one, other))
        cost += (first[:, None] - second) * (np.log(first)[:, None] - np.log(second))
    return np.asarray(cost)


def _place(one: MixtureParams, other: MixtureParams, gated: bool) -> Floats:
    """Return how far apart components lie once the two mixtures have the same mean, (K, K)."""
    apart = (one.means - one.weights @ one.means)[:, None] - (other.means - other.weights @ other.means)
    pooled = np.tensordot(one.weights, one.full_covariances(), 1)
    return np.asarray(np.einsum("kli,kli->kl", apart, np.linalg.solve(pooled, apart[..., None])[..., 0]))


def _regressed(parts: list[Group], means: Floats, weights: Floats, sought: Sought) -> MixtureParams:
    """Regress the means (G, K, d) and weights (G, K) of groups on where they are, component by component."""
    every = np.stack([part.centre for part in parts])
    places, centres = sought.widths.of_gate(every), sought.widths.of_effects(every)
    sizes = np.array([len(part.x) for part in parts], dtype=float)
    middle, root = np.average(centres, axis=0, weights=sizes), np.sqrt(sizes)[:, None]
    common = np.average(means, axis=0, weights=sizes)
    away = root * (means - common).reshape(len(parts), -1)
    slopes: Floats = np.asarray(np.linalg.lstsq(root * (centres - middle), away, rcond=1e-8)[0], dtype=np.float64)
    coef = slopes.reshape(-1, *common.shape).swapaxes(0, 1)
    total = np.maximum(np.average(weights, axis=0, weights=sizes), 1e-12)
    start = params_as(parts[0].mixture, sought.covariance_type)
    start = replace(start, weights=total / total.sum(), means=common - middle @ coef, coef=np.ascontiguousarray(coef))
    return replace(start, gate=gate_from(start.weights, weights, places, sizes)) if sought.gated else start


def _partitioned(block: Block, sought: Sought) -> Iterator[MixtureParams]:
    """Yield the starts that come of clusterwise regressions from several partitions."""
    K, random_state = sought.n_components, sought.random_state
    step = -(-block.n_rows // PARTITION_ROWS)
    block = block.select(np.arange(0, block.n_rows, step))
    u = sought.widths.of_effects(block.design)
    w = np.ones(block.n_rows) if block.weight is None else block.weight
    x = np.asarray(block.X, dtype=np.float64)
    scale = np.sqrt(np.average(x**2, axis=0, weights=w))
    x = x / np.where(scale > 0, scale, 1.0)
    columns, r = np.ascontiguousarray(np.hstack([u, x]).T), u.shape[1]
    rows = ArrayRows(block.X, u, (), block.weight)
    for number in range(PARTITIONS):
        if number % 3 == 2:
            labels = random_state.randint(K, size=len(x))
        else:  # clusters of rows, and of rows with their metadata
            seen = columns[r:] if number % 3 == 0 else columns
            labels = lloyd(seen, w, seed(seen, w, K, random_state), max_iter=5)[0]
        found = _clusterwise(np.hstack([u, np.ones((len(x), 1))]), x, w, labels, K)
        if found is None:
            continue
        with suppress(SingularCovarianceError, ValueError):
            how: dict[str, Any] = {"covariance_type": sought.covariance_type, "reg_covar": sought.reg_covar}
            start = own_params_of_labels(rows, found, K, **how)
            gate = constant_gate(start.weights, sought.widths.gate) if sought.gated else None
            yield replace(start, gate=gate)


def _clusterwise(v: Floats, x: Floats, w: Floats, labels: NDArray[np.integer], K: int) -> NDArray[np.intp] | None:
    """Assign rows to the nearest of K regressions, a few times; None if a regression runs out of rows."""
    q, d = v.shape[1], x.shape[1]
    for _ in range(ASSIGNMENTS):
        away = np.empty((K, len(x), d))
        for k in range(K):
            own = labels == k
            if np.count_nonzero(w[own]) < q + d + 1:
                return None
            root = np.sqrt(w[own])[:, None]
            away[k] = x - v @ np.linalg.lstsq(root * v[own], root * x[own], rcond=1e-8)[0]
        left = away[labels, np.arange(len(x))] * np.sqrt(w)[:, None]
        pooled = left.T @ left / w.sum()
        factor = np.linalg.cholesky(pooled + 1e-8 * np.trace(pooled) / d * np.eye(d))
        z = np.linalg.solve(factor, away.reshape(-1, d).T).reshape(d, K, len(x))
        labels = np.einsum("jki,jki->ki", z, z).argmin(axis=0)
    return labels.astype(np.intp)
