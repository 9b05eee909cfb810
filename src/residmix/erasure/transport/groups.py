r"""Mixtures by group of rows, with components that are matched by the joint likelihood.

A joint mixture with effects by component and weights by metadata is fitted first, so that components correspond across
groups. Then each group gets its own shift, covariance and weight of each component,

.. math::

    p(x \mid m) = \sum_k \pi_{gk}(m) N\bigl(x \mid \mu_k + B_k' a(m) + \delta_{gk}, D_k(m) \Sigma_{gk} D_k(m)\bigr),
    \qquad \pi_{gk}(m) \propto \pi_k(m) \exp(\lambda_{gk}),

by EM with the joint mixture as prior (:math:`\delta` of one row's weight, :math:`\Sigma` of d + 2 rows' or fewer), so
that a small group is close to the joint mixture, and a large one is determined by its own rows. Covariances may also be
the same at all groups (:math:`\Sigma_{gk} = \Sigma_k`, "by-component"), or of all components besides
(:math:`\Sigma`, "tied"): groups are aligned before, so the data may well say so, and then there is less to estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from residmix.conditional.coordinates import ToResidual
from residmix.conditional.given import located, orthonormal, weighed
from residmix.conditional.residual_mixture import ResidualMixture
from residmix.erasure.transport.aligned import find_groups, prior_rows
from residmix.erasure.transport.along import Along, along
from residmix.erasure.transport.clusters import merged, telling
from residmix.erasure.transport.rosenblatt import Mixtures
from residmix.errors import unnoted
from residmix.mixture.iteration.estep import normalised as shared_out
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.sampled import evenly

__all__ = [
    "COVARIANCES",
    "ByGroup",
    "common_labels",
    "fit_groups",
    "joint_rows",
    "kept_patterns",
    "log_normal",
    "normalised",
]

Floats = NDArray[np.float64]

# Rows that the joint mixture is fitted on: it matches components, the groups' own rows do the rest.
JOINT_ROWS = 20_000
# Of a group: fewer rows than this have what the joint mixture gives them.
FEWEST = 5
SMALLEST = 1e-12
MOST_STEPS, TOL, SPREAD_ROUNDS = 100, 1e-5, 5
# Families: what has a covariance of its own, from many parameters to few.
COVARIANCES = ("by-group", "by-component", "tied")
# So many design rows stand for all where it's asked what tells clusters apart.
PLACES = 16


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
        To the coordinates v = u basis in which clusters are told apart, best first. All but the joint mixture is in
        these.
    clusters : ndarray of int (K,)
        The cluster of each component; None in files from before there were any: each is one.
    usual_shift, usual_factors, usual_tilt : ndarray (K, d), (K, d, d), (K,)
        Of the average group; None in files from before there were any: means over groups.
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
    clusters: NDArray[np.intp] | None = None
    usual_shift: Floats | None = None
    usual_factors: Floats | None = None
    usual_tilt: Floats | None = None

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
        if self.usual_shift is None or self.usual_factors is None or self.usual_tilt is None:
            covariances = np.einsum("g,gkij,gklj->kil", self.share, self.factors, self.factors)
            factors: Floats = np.linalg.cholesky(covariances)
            shift, tilt = (np.tensordot(self.share, part, 1) for part in (self.shift, self.tilt))
        else:
            shift, factors, tilt = self.usual_shift, self.usual_factors, self.usual_tilt
        return Mixtures(normalised(log_weights + tilt), means + shift, factors[None], np.zeros(len(a), dtype=np.intp),
                        self.along.at(a))  # fmt: skip

    def with_usual(self, mass: Floats, a: Floats) -> ByGroup:
        """Return the same with an average group: at design row a (q,), of groups with rows `mass` (G, K).

        Each component is the mean of what it is at the groups, counted by its rows there. Where a group has none of
        it, its place there is made up, and a mean that counts it lies anywhere, in another cluster for one. Weights
        are those of all rows together: a mean of logarithms has next to nothing of what one group lacks.
        """
        if not len(self.patterns):
            return self
        rows = np.repeat(a[None], len(self.patterns), axis=0)
        rows[:, self.columns] = self.patterns
        means, (log_weights, origin) = self.base(rows)[1] + self.shift[:-1], self.base(a[None])
        mass = mass + SMALLEST
        counted = mass / mass.sum(axis=0)
        covariances = np.einsum("gk,gkij,gklj->kil", counted, self.factors[:-1], self.factors[:-1])
        return replace(
            self,
            usual_shift=np.einsum("gk,gkd->kd", counted, means) - origin[0],
            usual_factors=np.ascontiguousarray(np.linalg.cholesky(covariances)),
            usual_tilt=np.log(mass.sum(axis=0) / mass.sum()) - log_weights[0],
        )


def normalised(log_weights: Floats) -> Floats:
    top = log_weights.max(axis=1, keepdims=True)
    return np.asarray(log_weights - top - np.log(np.exp(log_weights - top).sum(axis=1, keepdims=True)))


def log_normal(away: Floats, factor: Floats, spread: Floats) -> Floats:
    """Return log N(away | 0, D L L' D) of rows (n, d)."""
    # rows stay rows: a product with the inverse takes a fifth of the time of a solution for their transpose
    inverse = solve_triangular(factor, np.eye(len(factor)), lower=True, check_finite=False)
    e = (away / spread) @ inverse.T
    constant = np.log(np.diag(factor)).sum() + 0.5 * len(factor) * np.log(2 * np.pi)
    return np.asarray(-0.5 * np.einsum("ij,ij->i", e, e) - constant - np.log(spread).sum(axis=1))


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
    covariances: str,
    clusters: NDArray[np.intp] | None = None,
    begun: ByGroup | None = None,
    told: Floats | None = None,
) -> ByGroup:
    """Fit the mixtures to aligned rows u (n, d) with design rows a (n, q).

    `columns` tell groups of the given `patterns` apart, along `numbers` laws vary. The joint mixture begins at
    `labels`, of the rows that `joint_rows` names. `covariances` is one of `COVARIANCES`; `clusters` (K,), the cluster
    of each component, if that's known. `begun` was fitted to some of the rows; its joint mixture is taken over. With
    `told` (n, C), the probabilities of the clusters, components of a cluster describe its rows only.
    """
    rows = joint_rows(len(u))
    if begun is None:
        to_residual, params, share = _joint(
            u[rows], a[rows], weight[rows], n_components, labels, covariances, random_state
        )
        clusters = merged(share, weight[rows]) if clusters is None else clusters
        basis = _told(to_residual, params, a[rows], clusters)
    else:
        to_residual, params, basis, clusters = begun.to_residual, begun.params, begun.basis, begun.clusters
    K, d, G = params.n_components, u.shape[1], len(patterns)
    shared: Floats = np.linalg.cholesky(basis.T @ params.full_covariances() @ basis).astype(np.float64)
    own = ByGroup(
        to_residual, params, along(np.zeros((1, K, d)), np.ones((1, K)), a[:1], numbers[:0]), columns, patterns,
        np.zeros((G + 1, K, d)), np.repeat(shared[None], G + 1, axis=0), np.zeros((G + 1, K)), np.zeros(G + 1), basis,
        clusters,
    )  # fmt: skip
    v, group = u @ basis, own.group_of(a)
    own = replace(own, along=_spreads(own, v[rows], a[rows], weight[rows], shared, numbers))
    scatter, mass = np.zeros((K, d, d)), np.zeros((G, K))
    for g in range(G):
        here = np.flatnonzero(group == g)
        log_weights, means = own.base(a[here])
        own.shift[g], own.factors[g], own.tilt[g], inside, mass[g] = _own(
            v[here], log_weights, means, shared, weight[here], own.along.at(a[here]), covariances == "by-group",
            None if told is None or clusters is None else _Told(told[here], clusters),
        )  # fmt: skip
        own.share[g], scatter = weight[here].sum(), scatter + inside
    if covariances != "by-group":
        own.factors[:] = _pooled(scatter, mass.sum(axis=0), shared, covariances == "tied")
    own.share[-1] = weight.sum() - own.share[:-1].sum()
    own.share[:] /= own.share.sum()
    return own.with_usual(mass, weight @ a / weight.sum())


def _told(to_residual: ToResidual, params: MixtureParams, a: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Return the basis in which clusters are told apart best by the first coordinates, at `PLACES` of the rows a."""
    rows = a[evenly(len(a), PLACES)]
    K = params.n_components
    means = np.stack([located(to_residual, params, np.full(len(rows), k), rows, ()) for k in range(K)], axis=1)
    return telling(means, params.full_covariances(), np.exp(weighed(to_residual, params, rows)), clusters)


def common_labels(
    u: Floats, a: Floats, weight: Floats, n_components: int, random_state: int, family: str
) -> NDArray[np.intp] | None:
    """Return the component of each row (n,) of a joint mixture with effects that all components share.

    None if one of them has no row. With effects of their own, components could be named differently in each group and
    be as likely.
    """
    shared = ResidualMixture(
        n_components, estimation="joint", gating="metadata", covariance_type=family, reg_covar="relative",
        random_state=random_state,
    )  # fmt: skip
    with unnoted():
        labels = shared.fit(u, metadata=a, sample_weight=weight).predict(u, metadata=a)
    return np.asarray(labels, dtype=np.intp) if len(np.unique(labels)) == n_components else None


def _joint(
    u: Floats,
    a: Floats,
    weight: Floats,
    n_components: int,
    labels: NDArray[np.intp] | None,
    covariances: str,
    random_state: int,
) -> tuple[ToResidual, MixtureParams, Floats]:
    """Fit the mixture whose components are the same things in all groups, with effects of each one's own.

    Return it, and the components' probabilities (n, K) of the rows.
    """
    model = ResidualMixture(
        n_components, estimation="joint", gating="metadata" if n_components > 1 else "constant",
        effects="by-component", covariance_type="tied" if covariances == "tied" else "full", labels_init=labels,
        reg_covar="relative", random_state=random_state,
    )  # fmt: skip
    with unnoted():
        model.fit(u, metadata=a, sample_weight=weight)
        share = np.asarray(model.predict_proba(u, metadata=a), dtype=np.float64)
    return model._to_residual, model._params, share


@dataclass(frozen=True)
class _Told:
    """Probabilities of the clusters (n, C) of rows, and the cluster of each component (K,)."""

    probability: Floats
    clusters: NDArray[np.intp]

    def within(self, joint: Floats) -> tuple[Floats, Floats]:
        """Return probabilities of components (n, K), and each row's log-likelihood (n,), given those of the clusters.

        A component that a group has hardly any rows of may lie anywhere there, so also where another cluster is, and
        would then take that one's rows: clusters' shares would be wrong, with a density that is right.
        """
        share, now = np.empty_like(joint), np.zeros(len(joint))
        for cluster in range(self.probability.shape[1]):
            here = np.flatnonzero(self.clusters == cluster)
            top = joint[:, here].max(axis=1, keepdims=True)
            inside = np.exp(joint[:, here] - top)
            total = inside.sum(axis=1, keepdims=True)
            share[:, here] = self.probability[:, [cluster]] * inside / total
            now += self.probability[:, cluster] * (top + np.log(total))[:, 0]
        return share, now


def _own(
    x: Floats,
    log_weights: Floats,
    means: Floats,
    shared: Floats,
    weight: Floats,
    spread: Floats,
    free: bool,
    told: _Told | None,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Go on from the joint mixture on the rows of one group, by EM; return shift, factors, tilt, scatter and mass.

    Covariances stay as they are `shared`, unless they're `free`.
    """
    K, d = shared.shape[:2]
    shift, tilt, factors, scatter = np.zeros((K, d)), np.zeros(K), shared.copy(), np.zeros((K, d, d))
    before = -np.inf
    for step in range(MOST_STEPS):
        log_prior = normalised(log_weights + tilt)
        joint = log_prior + np.stack(
            [log_normal(x - means[:, k] - shift[k], factors[k], spread[:, k]) for k in range(K)], axis=1
        )
        share, likely = shared_out(joint) if told is None else told.within(joint)
        now = float(weight @ likely / weight.sum())
        share *= weight[:, None]
        mass = share.sum(axis=0)
        tilt = tilt + np.log((mass + 1.0 / K) / (weight @ np.exp(log_prior) + 1.0 / K))
        last = abs(now - before) < TOL or step == MOST_STEPS - 1
        for k in range(K):
            away = x - means[:, k]
            shift[k] = share[:, k] @ away / (mass[k] + 1.0)
            if free or last:
                away = (away - shift[k]) / spread[:, k]
                scatter[k] = (away * share[:, k, None]).T @ away + shift[k][:, None] * shift[k]
            if free:
                prior = prior_rows(d, float(mass[k]))
                factors[k] = np.linalg.cholesky((scatter[k] + prior * shared[k] @ shared[k].T) / (mass[k] + prior))
        if last:
            break
        before = now
    return shift, factors, tilt - tilt.mean(), scatter, mass


def _pooled(scatter: Floats, mass: Floats, shared: Floats, tied: bool) -> Floats:
    """Return factors (K, d, d) of the covariances within components of all groups together, of all components if tied.

    Those of the joint mixture, which hasn't seen all rows, are the prior.
    """
    prior = np.array([prior_rows(shared.shape[1], float(rows)) for rows in mass])
    scatter = scatter + prior[:, None, None] * shared @ shared.swapaxes(1, 2)
    if tied:
        scatter = np.broadcast_to(scatter.mean(axis=0), scatter.shape)
        mass, prior = np.full(len(mass), mass.mean()), np.full(len(mass), prior.mean())
    return np.asarray(np.linalg.cholesky(scatter / (mass + prior)[:, None, None]))
