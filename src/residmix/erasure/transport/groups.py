r"""Mixtures by group of rows, with components that are matched by the joint likelihood.

A joint mixture with effects by component and weights by metadata is fitted first, so that components correspond across
groups. Then each group gets its own shift, covariance and weight of each component,

.. math::

    p(x \mid m) = \sum_k \pi_{gk}(m) N\bigl(x \mid \mu_k + B_k' a(m) + \delta_{gk}, D_k(m) \Sigma_{gk} D_k(m)\bigr),
    \qquad \pi_{gk}(m) \propto \pi_k(m) \exp(\lambda_{gk}),

by EM with the joint mixture as prior (:math:`\delta` of one row's weight, :math:`\Sigma` of d + 2 rows'), so that a
small group is close to the joint mixture, and a large one is determined by its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from residmix.conditional.coordinates import ToResidual
from residmix.conditional.given import located, orthonormal, weighed
from residmix.conditional.residual_mixture import ResidualMixture
from residmix.erasure.transport.aligned import find_groups
from residmix.erasure.transport.along import Along, along
from residmix.erasure.transport.rosenblatt import Mixtures
from residmix.errors import unnoted
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.sampled import evenly

__all__ = ["ByGroup", "common_labels", "fit_groups", "joint_rows", "kept_patterns", "log_normal", "normalised"]

Floats = NDArray[np.float64]

# Rows that the joint mixture is fitted on: it matches components, the groups' own rows do the rest.
JOINT_ROWS = 20_000
# Of a group: fewer rows than this have what the joint mixture gives them.
FEWEST = 5
MOST_STEPS, TOL, SPREAD_ROUNDS = 100, 1e-5, 5


@dataclass(frozen=True)
class ByGroup:
    """A mixture for each design row.

    Attributes
    ----------
    to_residual, params
        Of the joint mixture.
    along : Along
        Log spreads along numbers.
    columns : ndarray of int (c,)
        The design columns that tell groups apart.
    patterns : ndarray (G, c)
        Their values in each group.
    shift : ndarray (G + 1, K, d)
        The last one, 0, is for rows of no group.
    factors : ndarray (G + 1, K, d, d)
        Lower Cholesky factors.
    tilt : ndarray (G + 1, K)
        What a group adds to the log weights.
    share : ndarray (G + 1,)
        Of the rows.
    basis : ndarray (d, d)
        To the coordinates v = u basis in which components are told apart, best first. All but the joint mixture is in
        these.
    """

    to_residual: ToResidual
    params: MixtureParams
    along: Along
    columns: NDArray[np.intp]
    patterns: Floats
    shift: Floats
    factors: Floats
    tilt: Floats
    share: Floats
    basis: Floats

    def group_of(self, a: Floats) -> NDArray[np.intp]:
        """Return the group of each design row (n,); G for none."""
        return find_groups(a, self.columns, self.patterns)

    def base(self, a: Floats) -> tuple[Floats, Floats]:
        """Return log weights (n, K) and means (n, K, d), in v, of the joint mixture."""
        u, params = orthonormal(self.to_residual, a), self.params
        affine = replace(self.to_residual.affine, sign=1)
        means = []
        for k in range(params.n_components):
            where = np.broadcast_to(params.means[k], (len(a), params.means.shape[1]))
            if params.coef is not None and params.n_design:
                where = where + u @ np.ascontiguousarray(params.coef[k] if params.by_component else params.coef)
            means.append(affine(Block(0, np.ascontiguousarray(where), a, ())) @ self.basis)
        return weighed(self.to_residual, params, a), np.stack(means, axis=1)

    def at(self, a: Floats) -> Mixtures:
        """Return the mixture of each design row (n, q)."""
        group = self.group_of(a)
        log_weights, means = self.base(a)
        return Mixtures(normalised(log_weights + self.tilt[group]), means + self.shift[group], self.factors, group,
                        self.along.at(a))  # fmt: skip

    def average(self, a: Floats) -> Mixtures:
        """Return the mixture of each design row as the average group has it: the reference."""
        log_weights, means = self.base(a)
        covariances = np.einsum("g,gkij,gklj->kil", self.share, self.factors, self.factors)
        factors = np.linalg.cholesky(covariances)[None]
        shift, tilt = (np.tensordot(self.share, part, 1) for part in (self.shift, self.tilt))
        return Mixtures(normalised(log_weights + tilt), means + shift, factors, np.zeros(len(a), dtype=np.intp),
                        self.along.at(a))  # fmt: skip


def normalised(log_weights: Floats) -> Floats:
    top = log_weights.max(axis=1, keepdims=True)
    return np.asarray(log_weights - top - np.log(np.exp(log_weights - top).sum(axis=1, keepdims=True)))


def log_normal(away: Floats, factor: Floats, spread: Floats) -> Floats:
    """Return log N(away | 0, D L L' D) of rows (n, d)."""
    e = solve_triangular(factor, (away / spread).T, lower=True, check_finite=False)
    constant = np.log(np.diag(factor)).sum() + 0.5 * len(factor) * np.log(2 * np.pi)
    return np.asarray(-0.5 * np.einsum("ij,ij->j", e, e) - constant - np.log(spread).sum(axis=1))


def _spreads(own: ByGroup, x: Floats, a: Floats, weight: Floats, factors: Floats, numbers: NDArray[np.intp]) -> Along:
    """Return log spreads along `numbers`, in turns with the probabilities of the components."""
    log_weights, means = own.base(a)
    away, found = x[:, None] - means, own.along
    for _ in range(SPREAD_ROUNDS if len(numbers) else 0):
        spread = found.at(a)
        joint = log_weights + np.stack(
            [log_normal(away[:, k], factor, spread[:, k]) for k, factor in enumerate(factors)], axis=1
        )
        found = along(away, np.exp(normalised(joint)) * weight[:, None], a, numbers)
    return found


def joint_rows(n: int) -> NDArray[np.intp]:
    """Return which of n rows the joint mixture is fitted on."""
    return evenly(n, JOINT_ROWS)


def kept_patterns(a: Floats, columns: NDArray[np.intp]) -> Floats:
    """Return the values of `columns` in each group of enough rows, (G, c)."""
    patterns, counts = np.unique(a[:, columns], axis=0, return_counts=True)
    return np.asarray(patterns[counts >= FEWEST])


def fit_groups(
    u: Floats,
    a: Floats,
    columns: NDArray[np.intp],
    numbers: NDArray[np.intp],
    patterns: Floats,
    weight: Floats,
    n_components: int,
    random_state: int,
    labels: NDArray[np.intp] | None,
    begun: ByGroup | None = None,
) -> ByGroup:
    """Fit the mixtures to aligned rows u (n, d) with design rows a (n, q).

    `columns` tell groups of the given `patterns` apart, along `numbers` laws vary. The joint mixture begins at
    `labels`, of the rows that `joint_rows` names. `begun` was fitted to some of the rows; its joint mixture is taken
    over.
    """
    rows = joint_rows(len(u))
    if begun is None:
        to_residual, params = _joint(u[rows], a[rows], weight[rows], n_components, labels, random_state)
        basis = _telling(to_residual, params, weight @ a / weight.sum())
    else:
        to_residual, params, basis = begun.to_residual, begun.params, begun.basis
    K, d, G = params.n_components, u.shape[1], len(patterns)
    shared: Floats = np.linalg.cholesky(basis.T @ params.full_covariances() @ basis).astype(np.float64)
    own = ByGroup(
        to_residual, params, along(np.zeros((1, K, d)), np.ones((1, K)), a[:1], numbers[:0]), columns, patterns,
        np.zeros((G + 1, K, d)), np.repeat(shared[None], G + 1, axis=0), np.zeros((G + 1, K)), np.zeros(G + 1), basis,
    )  # fmt: skip
    v, group = u @ basis, own.group_of(a)
    own = replace(own, along=_spreads(own, v[rows], a[rows], weight[rows], shared, numbers))
    for g in range(G):
        here = np.flatnonzero(group == g)
        log_weights, means = own.base(a[here])
        own.shift[g], own.factors[g], own.tilt[g] = _own(
            v[here], log_weights, means, shared, weight[here], own.along.at(a[here])
        )
        own.share[g] = weight[here].sum()
    own.share[-1] = weight.sum() - own.share[:-1].sum()
    own.share[:] /= own.share.sum()
    return own


def _telling(to_residual: ToResidual, params: MixtureParams, a: Floats) -> Floats:
    """Return the basis in which the components at a design row `a` are told apart best by the first coordinates.

    Rosenblatt's transform goes through coordinates in turn. In one that mixes the components, rows of one may end in
    another; where the first coordinates tell them apart, they stay. One component leaves the features as they are.
    """
    covariances = params.full_covariances()
    K, d = covariances.shape[:2]
    if K == 1:
        return np.eye(d)
    weights = np.exp(weighed(to_residual, params, a[None])[0])
    means = np.concatenate([located(to_residual, params, np.array([k]), a[None], ()) for k in range(K)])
    away = means - weights @ means
    inside = np.einsum("k,kij->ij", weights, covariances)
    root = np.linalg.cholesky(inside)
    white = solve_triangular(root, away.T, lower=True).T
    vectors = np.linalg.eigh((white * weights[:, None]).T @ white)[1][:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(d)])
    # in the order that it has when it is read from a file, so that products are the same to the bit
    return np.ascontiguousarray(solve_triangular(root.T, vectors * signs, lower=False))


def common_labels(
    u: Floats, a: Floats, weight: Floats, n_components: int, random_state: int
) -> NDArray[np.intp] | None:
    """Return the component of each row (n,) of a joint mixture with effects that all components share; None for one.

    With effects of their own, components could be named differently in each group and be as likely.
    """
    if n_components == 1:
        return None
    shared = ResidualMixture(n_components, estimation="joint", gating="metadata", random_state=random_state)
    with unnoted():
        labels = shared.fit(u, metadata=a, sample_weight=weight).predict(u, metadata=a)
    return np.asarray(labels, dtype=np.intp) if len(np.unique(labels)) == n_components else None


def _joint(
    u: Floats, a: Floats, weight: Floats, n_components: int, labels: NDArray[np.intp] | None, random_state: int
) -> tuple[ToResidual, MixtureParams]:
    """Fit the mixture whose components are the same things in all groups, with effects of each one's own."""
    model = ResidualMixture(
        n_components, estimation="joint", gating="metadata" if n_components > 1 else "constant",
        effects="by-component", labels_init=labels, random_state=random_state,
    )  # fmt: skip
    with unnoted():
        model.fit(u, metadata=a, sample_weight=weight)
    return model._to_residual, model._params


def _own(
    x: Floats, log_weights: Floats, means: Floats, shared: Floats, weight: Floats, spread: Floats
) -> tuple[Floats, Floats, Floats]:
    """Go on from the joint mixture on the rows of one group, by EM; return shift, factors and tilt."""
    K, d = shared.shape[:2]
    shift, tilt, factors = np.zeros((K, d)), np.zeros(K), shared.copy()
    prior = d + 2.0
    before = -np.inf
    for _ in range(MOST_STEPS):
        log_prior = normalised(log_weights + tilt)
        joint = log_prior + np.stack(
            [log_normal(x - means[:, k] - shift[k], factors[k], spread[:, k]) for k in range(K)], axis=1
        )
        top = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - top)
        total = share.sum(axis=1, keepdims=True)
        now = float(weight @ (top + np.log(total))[:, 0] / weight.sum())
        share *= weight[:, None] / total
        mass = share.sum(axis=0)
        tilt = tilt + np.log((mass + 1.0 / K) / (weight @ np.exp(log_prior) + 1.0 / K))
        for k in range(K):
            away = x - means[:, k]
            shift[k] = share[:, k] @ away / (mass[k] + 1.0)
            away = (away - shift[k]) / spread[:, k]
            scatter = (away * share[:, k, None]).T @ away + shift[k][:, None] * shift[k]
            factors[k] = np.linalg.cholesky((scatter + prior * shared[k] @ shared[k].T) / (mass[k] + prior))
        if abs(now - before) < TOL:
            break
        before = now
    return shift, factors, tilt - tilt.mean()
