r"""Transport of rows from the distribution given their metadata to that of a reference.

.. math:: y = G^{-1}_{m}(F_{m}(x))

with F the Rosenblatt transform of :math:`p(x \mid m)` and G that of the target. Target of "full" is the reference
mixture; of "component" the reference's components with the weights that m has; preserved columns keep the row's values
in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.effects.unmeasured.levels import Lost
from residmix.erasure.transport.aligned import Aligned, aligned, find_groups
from residmix.erasure.transport.clusters import apart, divided, kept_shares, merged
from residmix.erasure.transport.groups import (
    ByGroup,
    common_labels,
    fit_groups,
    joint_rows,
    kept_patterns,
    log_normal,
    normalised,
)
from residmix.erasure.transport.rosenblatt import Mixtures, from_scores, to_scores
from residmix.kernels.pairs import small
from residmix.mixture.iteration.estep import normalised as shared_out
from residmix.rows.block import Block

__all__ = ["STARTS", "Applied", "Asked", "Averaged", "Transport", "fit_transport"]

Floats = NDArray[np.float64]

# Ways to a first matching: covariances of the components, and alignments and labels in turns.
STARTS = (("full", 1), ("tied", 2), ("full", 2))
# A row isn't counted with a cluster that is less probable than this.
HARDLY = 1e-6
# Rows whose laws are in memory at a time where densities and scores are asked for.
BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Transport:
    """The fitted maps.

    Attributes
    ----------
    aligned : Aligned
    by_group : ByGroup
        Of aligned rows.
    n_removed : int
        Design columns from here on are preserved.
    reference : ndarray (n_removed,)
        Design row of the reference.
    profile : bool
        Whether the reference was given; else it is the average.
    keeps_shares : bool
        "component": the weights that clusters have at a row's own metadata stay.
    covariances : str
        The family, see `residmix.erasure.transport.groups.COVARIANCES`.
    parts : int
        Components that each cluster was divided into.
    varies : ndarray of bool (d,) or None
        The features that aren't constant; laws are of these, and the others stay as they are. None: all of them.
    """

    aligned: Aligned
    by_group: ByGroup
    n_removed: int
    reference: Floats
    profile: bool
    keeps_shares: bool
    covariances: str = "by-group"
    parts: int = 1
    varies: NDArray[np.bool_] | None = None

    @property
    def clusters(self) -> NDArray[np.intp]:
        """The cluster of each component, (K,)."""
        found, K = self.by_group.clusters, self.by_group.params.n_components
        return np.arange(K) if found is None else found

    def _referred(self, a: Floats) -> Floats:
        referred = a.copy()
        referred[:, : self.n_removed] = self.reference
        return referred

    def _laws(self, a: Floats) -> tuple[Mixtures, Mixtures]:
        """Return the mixtures of the rows' own metadata and of the reference."""
        own = self.by_group.at(a)
        alike = self.n_removed == a.shape[1]  # then all rows have one target
        referred = self._referred(a[:1] if alike else a)
        target = self.by_group.at(referred) if self.profile else self.by_group.average(referred)
        target = target.repeated(len(a)) if alike else target
        if self.keeps_shares:
            kept = kept_shares(own.log_weights, target.log_weights, self.clusters)
            target = replace(target, log_weights=kept)
        return own, target

    def plain(self, n_rows: int | None) -> bool:
        """Tell whether so many rows are moved by numpy: few of them, or of one Gaussian each, which BLAS moves."""
        K, d = self.by_group.factors.shape[1:3]
        return K == 1 or small(n_rows, K * d)

    def scores(self, x: Floats, a: Floats, *, plain: bool = False, of_target: bool = False) -> Floats:
        """Return normal scores of rows given their metadata: if the model is right, independent of these.

        Or, `of_target`, their scores under the law that they'd be brought to.
        """

        def scored(x: Floats, a: Floats) -> Floats:
            where = self._referred(a) if of_target else a
            return to_scores(self.coordinates(x, where), self._laws(a)[of_target], plain=plain)

        return _by_blocks(scored, x, a)

    def forward(self, x: Floats, a: Floats, *, plain: bool = False) -> Floats:
        own, target = self._laws(a)
        z = to_scores(self.coordinates(x, a), own, plain=plain)
        return self._out_of(from_scores(z, target, plain=plain), self._referred(a), x)

    def backward(self, y: Floats, a: Floats, *, plain: bool = False) -> Floats:
        own, target = self._laws(a)
        z = to_scores(self.coordinates(y, self._referred(a)), target, plain=plain)
        return self._out_of(from_scores(z, own, plain=plain), a, y)

    def coordinates(self, x: Floats, a: Floats) -> Floats:
        """Return the coordinates that laws are in: aligned, components told apart by the first ones."""
        return self.aligned.into(x if self.varies is None else x[:, self.varies], a) @ self.by_group.basis

    def _out_of(self, v: Floats, a: Floats, before: Floats) -> Floats:
        u: Floats = np.linalg.solve(self.by_group.basis.T, v.T).T.astype(np.float64, order="C")
        made = self.aligned.out_of(u, a)
        if self.varies is None:
            return made
        whole = before.copy()
        whole[:, self.varies] = made
        return whole

    def _log_joint(self, x: Floats, a: Floats) -> Floats:
        """Return log p(x, k | m), (n, K), less the slope of the alignment."""
        return _by_blocks(lambda x, a: _log_joint(self.coordinates(x, a), self.by_group.at(a)), x, a)

    def labels(self, x: Floats, a: Floats) -> NDArray[np.intp]:
        """Return the most probable component of each row given its metadata, (n,)."""
        return np.asarray(self._log_joint(x, a).argmax(axis=1))

    def cluster_labels(self, x: Floats, a: Floats) -> NDArray[np.intp]:
        """Return the most probable cluster of each row given its metadata, (n,)."""
        return np.asarray(self.cluster_shares(x, a).argmax(axis=1))

    def cluster_shares(self, x: Floats, a: Floats) -> Floats:
        """Return the probability of each cluster given row and metadata, (n, C)."""
        each, clusters = self.component_shares(x, a), self.clusters
        return np.stack([each[:, clusters == c].sum(axis=1) for c in range(clusters.max() + 1)], axis=1)

    def component_shares(self, x: Floats, a: Floats) -> Floats:
        """Return the probability of each component given row and metadata, (n, K)."""
        return np.exp(normalised(self._log_joint(x, a)))

    def sound(self, x: Floats, a: Floats, weight: Floats) -> bool:
        """Tell whether its clusters are what rows say: apart from each other in each group, and none falls apart.

        A mixture may be as likely whose components describe one cluster at one site and another one, or a part of
        one, at another.
        """
        share, clusters, group = self.component_shares(x, a), self.clusters, self.by_group.group_of(a)
        if self.parts == 1:
            return len(np.unique(clusters)) == len(clusters) and all(
                apart(share[group == g], weight[group == g], x.shape[1]) for g in np.unique(group)
            )
        return all(merged(share[:, clusters == c], weight).max() == 0 for c in np.unique(clusters))

    def log_density(self, x: Floats, a: Floats) -> Floats:
        """Return log p(x | m), (n,)."""
        slope = self.aligned.log_slope(a) + np.linalg.slogdet(self.by_group.basis)[1]
        return np.asarray(shared_out(self._log_joint(x, a))[1] + slope)


@dataclass(frozen=True)
class Applied:
    """Block to what a map makes of it, in the dtype of X.

    `plain`, chosen for all blocks, is handed to the map; `check`, if any, sees a block before and returns it.
    """

    function: Callable[..., Floats]
    plain: bool = False
    check: Callable[[Block], Block] | None = None

    def __call__(self, block: Block) -> Floats:
        if self.check is not None:
            block = self.check(block)
        x, a = (np.asarray(part, dtype=np.float64) for part in (block.X, block.design))
        made = self.function(x, a, plain=self.plain)
        return made.astype(block.X.dtype, copy=False)


@dataclass(frozen=True)
class Averaged:
    """Block with the averages of fit, `mean`, where it has a combination of levels that had no rows there."""

    lost: tuple[tuple[str, Lost], ...]
    mean: Floats

    def __call__(self, block: Block) -> Block:
        design = np.array(block.design)
        for _, (columns, rows, _) in self.lost:
            for row in rows:
                design[np.ix_((block.design[:, columns] == row).all(axis=1), columns)] = self.mean[columns]
        return replace(block, design=design)


def _by_blocks(function: Callable[[Floats, Floats], Floats], x: Floats, a: Floats) -> Floats:
    """Return function(x, a) of some rows at a time, since their laws are n K d numbers, and there are several."""
    parts = [slice(start, start + BLOCK_ROWS) for start in range(0, max(len(x), 1), BLOCK_ROWS)]
    return np.concatenate([function(x[part], a[part]) for part in parts])


def _log_joint(x: Floats, given: Mixtures) -> Floats:
    joint = given.log_weights.copy()
    for factors, rows in given.groups():
        for k, factor in enumerate(factors):
            joint[rows, k] += log_normal(x[rows] - given.means[rows, k], factor, given.spread[rows, k])
    return joint


@dataclass(frozen=True)
class Asked:
    """What a transport is fitted to: rows x (n, d) with design rows a (n, q), and how.

    Attributes
    ----------
    discrete : ndarray of bool (n_removed,)
        Of the design columns that are removed, the first ones: whether they tell groups apart. Along others, numbers,
        laws vary smoothly.
    reference : ndarray (n_removed,) or None
    keeps_shares : bool
    random_state : int
    """

    x: Floats
    a: Floats
    weight: Floats
    discrete: NDArray[np.bool_]
    reference: Floats | None
    keeps_shares: bool
    random_state: int

    def only(self, rows: NDArray[Any]) -> Asked:
        return replace(self, x=self.x[rows], a=self.a[rows], weight=self.weight[rows])


def _matched(
    x: Floats,
    a: Floats,
    weight: Floats,
    n_removed: int,
    columns: NDArray[np.intp],
    numbers: NDArray[np.intp],
    patterns: Floats,
    n_components: int,
    random_state: int,
    start: int,
) -> tuple[Aligned, NDArray[np.intp] | None]:
    """Return what aligns groups, and the component of each row, None where some have no rows.

    Groups whose components have other shares have other covariances, even if components are the same: what turns these
    covariances to one may bring a component to where another one is. So there are several of `STARTS`.
    """
    family, rounds = STARTS[start]
    alike, found = aligned(x, a, weight, n_removed, columns, numbers, patterns), None
    for _ in range(rounds if n_components > 1 else 0):
        labels = common_labels(alike.into(x, a), a, weight, n_components, random_state, family)
        if labels is None:
            break
        found = labels
        alike = aligned(x, a, weight, n_removed, columns, numbers, patterns, labels)
    return alike, found


def _realigned(
    begun: Transport,
    x: Floats,
    a: Floats,
    weight: Floats,
    columns: NDArray[np.intp],
    numbers: NDArray[np.intp],
    patterns: Floats,
) -> Aligned:
    """Return what aligns groups, given the probabilities of the clusters that `begun` finds in these rows.

    Labels instead would cut off the tails in which clusters overlap.
    """
    if begun.by_group.params.n_components == 1:
        return aligned(x, a, weight, begun.n_removed, columns, numbers, patterns)
    share = begun.cluster_shares(x, a)
    row, cluster = np.nonzero(share > HARDLY)
    return aligned(
        x[row], a[row], weight[row] * share[row, cluster], begun.n_removed, columns, numbers, patterns, cluster
    )


def fit_transport(
    asked: Asked,
    n_components: int,
    *,
    covariances: str = "by-group",
    parts: int = 1,
    begun: Transport | None = None,
    start: int = 0,
) -> Transport | None:
    """Fit the laws, with `parts` components to each of the clusters; None if these can't be divided.

    `begun` was fitted to some of the rows. If it's of the same kind, what aligns groups and the joint mixture are taken
    over; if not, they are fitted again from the components that it gives rows. Clusters are those of `begun`. Without
    it, `start` is one of `STARTS`.
    """
    x, a, weight, n_removed = asked.x, asked.a, asked.weight, len(asked.discrete)
    columns, numbers = np.flatnonzero(asked.discrete), np.flatnonzero(~asked.discrete)
    patterns, rows = kept_patterns(a, columns), joint_rows(len(x))
    told, labels, clusters, joint = (a[rows], weight[rows]), None, None, None

    if begun is None:
        alike, labels = _matched(
            x[rows], *told, n_removed, columns, numbers, patterns, n_components, asked.random_state, start
        )
    elif begun.parts == parts and (parts > 1 or begun.covariances == covariances):
        joint, clusters = begun.by_group, begun.clusters
        alike = _realigned(begun, x, a, weight, columns, numbers, patterns)
    else:
        whole = begun.labels(x, a)
        labels = whole[rows] if len(np.unique(whole[rows])) == n_components // parts else None
        alike = begun.aligned
        if labels is not None:
            alike = _realigned(begun, x, a, weight, columns, numbers, patterns)
        if parts > 1:
            group = find_groups(a[rows], columns, patterns)
            part = None if labels is None else divided(
                alike.into(x[rows], a[rows]), group, labels, weight[rows], parts, asked.random_state
            )  # fmt: skip
            if labels is None or part is None:
                return None
            labels, clusters = labels * parts + part, np.repeat(begun.clusters, parts)
    groups = fit_groups(
        alike.into(x, a), a, columns, numbers, patterns, weight, n_components, asked.random_state, labels, covariances,
        clusters, joint, begun.cluster_shares(x, a) if begun is not None and parts > 1 else None,
    )  # fmt: skip
    reference = weight @ a[:, :n_removed] / weight.sum() if asked.reference is None else asked.reference
    return Transport(alike, groups, n_removed, reference, asked.reference is not None, asked.keeps_shares, covariances,
                     parts)  # fmt: skip
