r"""Where joint estimation begins: mixtures of groups of rows with like metadata, matched by a common shift.

In a group of rows with (nearly) the same metadata the effect of the metadata is a constant, so a mixture fitted to the
group alone sees the clusters as they are, whatever their proportions. If the metadata shift every cluster alike, the
components of two groups differ by one vector only. Matching components so that they do gives the shift of each
group; regressing the shifts on the metadata gives the coefficients. Where several matchings are plausible, each
becomes a candidate; short runs on a subsample and the likelihood decide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice, permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus

from residmix.em import EMState, run_em
from residmix.families import MixtureParams, SingularCovarianceError, make_params
from residmix.gating import Gate, make_gate
from residmix.joint import ConditionalEM, ConditionalParams
from residmix.moments.kernels import mixture_block_rows
from residmix.sources.rows import ArrayRows, Block, Rows
from residmix.starts import find_start, subsample_index, subsample_rows

__all__ = ["conditional_starts", "constant_gate", "joint_starts"]

Floats = NDArray[np.float64]

MAX_GROUPS = 6
# Rows per parameter of a group's mixture, below which the group says nothing.
MIN_ROWS = 4
GROUP_RUNS = 3
MAX_PERMUTED = 4
CANDIDATES = 12
SHORT_ITERATIONS = 40
KEPT = 2


def constant_gate(weights: Floats, r: int) -> Gate:
    """Return the gate whose priors are `weights`, whatever the metadata."""
    coef = np.zeros((len(weights), r + 1))
    coef[:, -1] = np.log(np.maximum(weights, 1e-12))
    return make_gate(coef)


def conditional_starts(
    rows: Rows,
    n_components: int,
    *,
    width: int,
    covariance_type: str,
    reg_covar: float,
    joint: bool,
    gated: bool,
    n_init: int,
    init_params: str,
    given: dict[str, Floats | None],
    finish: Callable[[ConditionalEM, ConditionalParams], EMState[ConditionalParams]],
    random_state: np.random.RandomState,
) -> list[ConditionalParams]:
    """Return where to begin: joint estimation also where two stages end, so that it can't do worse.

    Parameters
    ----------
    rows, n_components, covariance_type, reg_covar, gated, random_state
        As in :func:`joint_starts`.
    width : int
        Columns of the orthonormal design.
    joint : bool
        Whether the coefficients are estimated with the mixture.
    n_init, init_params, given
        As in :class:`residmix.GaussianMixture`, the given starting values checked.
    finish : callable
        Runs EM to its end.
    """
    starts = []
    for _ in range(n_init):
        mixture = find_start(
            rows,
            n_components,
            covariance_type=covariance_type,
            reg_covar=reg_covar,
            init_params=init_params,
            random_state=random_state,
            **given,
        )
        gate = constant_gate(mixture.weights, width) if gated else None
        start = ConditionalParams(mixture, np.zeros((width, rows.n_features)), gate)
        if joint:
            # a start that collapses here is judged, and reported, where all starts are run
            with suppress(SingularCovarianceError):
                start = finish(ConditionalEM(rows, reg_covar, joint=False), start).params
        starts.append(start)
        if joint and all(value is None for value in given.values()):
            starts += joint_starts(
                rows,
                n_components,
                covariance_type=covariance_type,
                reg_covar=reg_covar,
                gated=gated,
                random_state=random_state,
            )
    return starts


def joint_starts(
    rows: Rows,
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    gated: bool,
    random_state: np.random.RandomState,
) -> list[ConditionalParams]:
    """Return the most promising starts, the best first.

    Parameters
    ----------
    rows : Rows
        Least-squares residuals and orthonormal design rows (:class:`residmix.joint.ToResidual`).
    n_components : int
    covariance_type : str
    reg_covar : float
    gated : bool
        Whether mixing weights depend on the metadata.
    random_state : RandomState
    """
    block = _subsample(rows, n_components, random_state)
    u = block.design
    assert u is not None
    if n_components == 1 or u.shape[1] == 0:
        return []
    groups = _groups(u, n_components, block.X.shape[1], random_state)
    if len(groups) < 2:
        return []
    few = ArrayRows(block.X, u, (), block.weight, mixture_block_rows(block.X.shape[1], n_components))
    em = ConditionalEM(few, reg_covar)
    ended: list[EMState[ConditionalParams]] = []
    for _ in range(GROUP_RUNS):
        mixtures = [
            _group_mixture(block, rows_, n_components, covariance_type, reg_covar, random_state) for rows_ in groups
        ]
        centres = np.stack([u[index].mean(axis=0) for index in groups])
        sizes = np.array([len(index) for index in groups], dtype=float)
        for start in _candidates(mixtures, centres, sizes, gated):
            try:
                ended.append(run_em(em, start, tol=1e-5, max_iter=SHORT_ITERATIONS))
            except SingularCovarianceError:
                continue
    ended.sort(key=lambda state: -state.log_likelihood)
    return [state.params for state in ended[:KEPT]]


def _subsample(rows: Rows, n_components: int, random_state: np.random.RandomState) -> Block:
    index = subsample_index(rows.n_rows, subsample_rows(n_components, rows.n_features), random_state)
    return rows.take(index)


def _groups(u: Floats, n_components: int, d: int, random_state: np.random.RandomState) -> list[NDArray[np.intp]]:
    """Return the rows of the largest groups with like metadata: equal design rows, or neighbours."""
    scale = np.abs(u).max(axis=0)
    coarse = np.round(u / np.where(scale > 0, scale, 1.0), 9)
    levels, label = np.unique(coarse, axis=0, return_inverse=True)
    if len(levels) > MAX_GROUPS:
        centres, _ = kmeans_plusplus(u, MAX_GROUPS, random_state=random_state)
        for _ in range(20):
            label = ((u[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
            centres = np.stack(
                [u[label == g].mean(axis=0) if (label == g).any() else centres[g] for g in range(MAX_GROUPS)]
            )
    groups = [np.flatnonzero(label == g) for g in range(int(label.max()) + 1)]
    enough = [index for index in groups if len(index) >= MIN_ROWS * n_components * (d + 1)]
    return sorted(enough, key=lambda index: -len(index))[:MAX_GROUPS]


def _group_mixture(
    block: Block,
    index: NDArray[np.intp],
    n_components: int,
    covariance_type: str,
    reg_covar: float,
    random_state: np.random.RandomState,
) -> MixtureParams:
    weight = None if block.weight is None else block.weight[index]
    rows = ArrayRows(np.ascontiguousarray(block.X[index]), weight=weight)
    return find_start(
        rows, n_components, covariance_type=covariance_type, reg_covar=reg_covar, random_state=random_state
    )


def _candidates(mixtures: list[MixtureParams], centres: Floats, sizes: Floats, gated: bool) -> list[ConditionalParams]:
    """Return starts from the plausible matchings of the groups' components with those of the first group."""
    first = mixtures[0]
    pooled = np.average(first.full_covariances(), axis=0, weights=first.weights)
    root = np.linalg.cholesky(pooled + 1e-9 * np.trace(pooled) / len(pooled) * np.eye(len(pooled)))
    options = [[(np.zeros(first.n_features), np.arange(first.n_components))]]
    options += [_matchings(first, mixture, root) for mixture in mixtures[1:]]
    return [
        _start_from(mixtures, [shift for shift, _ in chosen], [order for _, order in chosen], centres, sizes, gated)
        for chosen in islice(product(*options), CANDIDATES)
    ]


def _matchings(first: MixtureParams, other: MixtureParams, root: Floats) -> list[tuple[Floats, NDArray[np.intp]]]:
    """Return (shift, order): component order[k] of `other` is component k of `first`, moved by shift."""
    K = first.n_components
    if K <= MAX_PERMUTED:
        orders = [np.array(order) for order in permutations(range(K))]
    else:
        orders = []
        for k in range(K):  # pair the heaviest component with each other one, the rest follows
            shift = other.means[k] - first.means[int(np.argmax(first.weights))]
            gap = np.linalg.solve(root, (first.means[:, None] + shift - other.means[None]).reshape(-1, len(root)).T)
            orders.append(linear_sum_assignment((gap**2).sum(axis=0).reshape(K, K))[1])
    found = []
    for order in orders:
        moves = other.means[order] - first.means
        share = np.sqrt(first.weights * other.weights[order])
        shift = share @ moves / share.sum()
        misfit = float((np.linalg.solve(root, (moves - shift).T) ** 2).sum(axis=0) @ share / share.sum())
        found.append((misfit, shift, order))
    found.sort(key=lambda item: item[0])
    return [(shift, order) for _, shift, order in found[: 2 if K > 2 else K]]


def _start_from(
    mixtures: list[MixtureParams],
    shifts: list[Floats],
    orders: list[NDArray[np.intp]],
    centres: Floats,
    sizes: Floats,
    gated: bool,
) -> ConditionalParams:
    first, r = mixtures[0], centres.shape[1]
    about = centres - np.average(centres, axis=0, weights=sizes)
    moved = np.stack(shifts) - np.average(shifts, axis=0, weights=sizes)
    root = np.sqrt(sizes)[:, None]
    coef: Floats = np.asarray(np.linalg.lstsq(root * about, root * moved, rcond=1e-8)[0], dtype=np.float64)
    share = np.stack(
        [size * mixture.weights[order] for size, mixture, order in zip(sizes, mixtures, orders, strict=True)]
    )
    inside = [
        mixture.means[order] - centre @ coef for mixture, order, centre in zip(mixtures, orders, centres, strict=True)
    ]
    total = np.maximum(share.sum(axis=0), 1e-12)
    means = np.einsum("gk,gkd->kd", share, np.stack(inside)) / total[:, None]
    covariances = first.covariances
    if first.covariance_type == "tied":
        covariances = np.average([m.covariances for m in mixtures], axis=0, weights=sizes)
    else:
        kept = np.stack([m.covariances[order] for m, order in zip(mixtures, orders, strict=True)])
        covariances = np.einsum("gk,gk...->k...", share, kept) / total.reshape(-1, *[1] * (kept.ndim - 2))
    weights = total / total.sum()
    mixture = make_params(weights, means, covariances, first.covariance_type)
    if not gated:
        return ConditionalParams(mixture, coef)
    within = np.log(np.maximum(share / sizes[:, None], 0.02))
    slopes = np.linalg.lstsq(root * about, root * (within - within.mean(axis=1, keepdims=True)), rcond=1e-8)[0]
    gate = constant_gate(weights, r).coef.copy()
    gate[:, :-1] = slopes.T
    return ConditionalParams(mixture, coef, make_gate(gate))
