r"""Starts of joint estimation: mixtures of groups of rows with similar metadata, matched by a common shift.

In a group of rows with (nearly) the same metadata the effect of the metadata is a constant, so a mixture fitted to the
group alone sees the clusters as they are, whatever their proportions. If the metadata shift every cluster alike, one
vector moves the whole group onto another one, and the heaviest cluster of the one onto some cluster of the other. So
one group leads, and the others join it one by one: of the shifts that move a group's heaviest component onto one of
the components found so far, the one that makes its rows likeliest counts. Regressing the shifts on the metadata gives
the coefficients. Components have their own covariances, and in other candidates one in common: clusters that are rare
in every group have too few rows for their own, and such a component would rather split a frequent cluster. Each group
leads once. That fails where a group's heaviest cluster is its own: so in further candidates any component of a group
may be the one in common (`residmix.conditional.matches`). Short runs on a subsample and the likelihood decide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coordinates import Widths
from residmix.conditional.matches import likely_matches
from residmix.em.loop import EMState, run_em
from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.families.family import family
from residmix.mixture.given.gate import Gate, make_gate
from residmix.mixture.iteration.estep import Problem, log_joint, mixture_block_rows, normalised
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError, make_params, params_as
from residmix.mixture.starts import find_start, find_starts, subsample
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["Group", "conditional_starts", "constant_gate", "gate_from", "groups_of", "joint_starts"]

Floats = NDArray[np.float64]

MAX_GROUPS = 12
# Groups that lead, the largest.
LEADS = 6
# Rows per parameter of a group's mixture, below which the group says nothing.
MIN_ROWS = 4
# Starts of a group's mixture with rare components, and the share of rows that they are looked for among.
GROUP_RUNS = 6
FAR = 0.04
# Iterations of a group's mixture, of a group's shift, and of the joint model: all candidates, then the best few.
GROUP_ITERATIONS = 20
SHIFT_ITERATIONS = 5
SHORT_ITERATIONS = (10, 40)
KEPT = (8, 3)


def constant_gate(weights: Floats, r: int) -> Gate:
    """Return the gate with the constant weights `weights`."""
    coef = np.zeros((len(weights), r + 1))
    coef[:, -1] = np.log(np.maximum(weights, 1e-12))
    return make_gate(coef)


def conditional_starts(
    rows: Rows,
    n_components: int,
    *,
    widths: Widths,
    covariance_type: str,
    reg_covar: float,
    joint: bool,
    gated: bool,
    n_init: int,
    init_params: str,
    given: dict[str, Floats | None],
    finish: Callable[[MixtureEM, MixtureParams], EMState[MixtureParams]],
    random_state: np.random.RandomState,
) -> list[MixtureParams]:
    """Return starts; for joint estimation they include the two-stage result, so that it can't be worse.

    Of two stages the first `n_init` are wanted; those after them are for fits that end in components on a few rows.

    Parameters
    ----------
    rows, n_components, covariance_type, reg_covar, gated, random_state
        As in :func:`joint_starts`.
    widths : Widths
        Columns of the orthonormal design that gate and effects have.
    joint : bool
        Whether the coefficients are estimated with the mixture.
    n_init, init_params, given
        As in :class:`residmix.GaussianMixture`, the given starting values checked.
    finish : callable
        Runs EM to its end.
    """
    starts: list[MixtureParams] = []
    spare: list[MixtureParams] = []

    def with_metadata(mixture: MixtureParams) -> MixtureParams:
        gate = constant_gate(mixture.weights, widths.gate) if gated else None
        return replace(mixture, coef=np.zeros((widths.effects, rows.n_features)), gate=gate)

    for _ in range(n_init):
        mixture, *others = find_starts(
            rows,
            n_components,
            covariance_type=covariance_type,
            reg_covar=reg_covar,
            init_params=init_params,
            random_state=random_state,
            **given,
        )
        start = with_metadata(mixture)
        if not joint:
            spare += map(with_metadata, others)
        else:
            # a start that collapses here is judged, and reported, where all starts are run
            with suppress(SingularCovarianceError):
                start = finish(MixtureEM(rows, reg_covar, joint=False), start).params
        starts.append(start)
        # with hundreds of components the search among groups takes too long
        if joint and init_params != "many" and all(value is None for value in given.values()):
            starts += joint_starts(
                rows,
                n_components,
                covariance_type=covariance_type,
                reg_covar=reg_covar,
                gated=gated,
                random_state=random_state,
                widths=widths,
            )
    return starts + spare


def joint_starts(
    rows: Rows,
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    gated: bool,
    random_state: np.random.RandomState,
    widths: Widths | None = None,
) -> list[MixtureParams]:
    """Return the most promising starts, the best first.

    Parameters
    ----------
    rows : Rows
        Least-squares residuals and orthonormal design rows (:class:`residmix.conditional.coordinates.ToResidual`).
    n_components : int
    covariance_type : str
    reg_covar : float
    gated : bool
        Whether mixing weights depend on the metadata.
    random_state : RandomState
    widths : Widths, optional
        Columns of the design that gate and effects have. Default: all.
    """
    block = subsample(rows, n_components, random_state)
    u = block.design
    widths = widths or Widths(u.shape[1], u.shape[1])
    if n_components == 1 or widths.effects == 0:
        return []
    groups = groups_of(u, n_components, block.X.shape[1], random_state)
    if len(groups) < 2:
        return []
    found = []
    for kind in dict.fromkeys(("tied", covariance_type)):
        # a candidate whose covariance collapses is none
        with suppress(SingularCovarianceError):
            parts = [Group.of(block, index, n_components, kind, reg_covar, random_state) for index in groups]
            for lead in range(min(len(parts), LEADS)):
                found += _join(parts, lead, covariance_type, reg_covar, gated, random_state, widths)
            found += _matched(parts, covariance_type, gated, widths)
    few = ArrayRows(block.X, u, (), block.weight, mixture_block_rows(block.X.shape[1], n_components))
    em = MixtureEM(few, reg_covar)
    for iterations, kept in zip(SHORT_ITERATIONS, KEPT, strict=True):
        ended: list[EMState[MixtureParams]] = []
        for start in found:
            with suppress(SingularCovarianceError):
                ended.append(run_em(em, start, tol=1e-5, max_iter=iterations))
        ended.sort(key=lambda state: -state.log_likelihood)
        found = [state.params for state in ended[:kept]]
    return found


def groups_of(u: Floats, n_components: int, d: int, random_state: np.random.RandomState) -> list[NDArray[np.intp]]:
    """Return the rows of the largest groups with like metadata: equal design rows, or neighbours."""
    scale = np.abs(u).max(axis=0)
    coarse = np.round(u / np.where(scale > 0, scale, 1.0), 9)
    levels, label = np.unique(coarse, axis=0, return_inverse=True)
    if len(levels) > MAX_GROUPS:
        columns, each = np.ascontiguousarray(u.T), np.ones(len(u))
        label = lloyd(columns, each, seed(columns, each, MAX_GROUPS, random_state), max_iter=19)[0]
    groups = [np.flatnonzero(label == g) for g in range(int(label.max()) + 1)]
    enough = [index for index in groups if len(index) >= MIN_ROWS * n_components * (d + 1)]
    return sorted(enough, key=lambda index: -len(index))[:MAX_GROUPS]


@dataclass(frozen=True)
class Group:
    """Rows of like metadata, where they are, and a mixture of them alone."""

    x: Floats
    weight: Floats | None
    centre: Floats
    mixture: MixtureParams

    @classmethod
    def of(
        cls,
        block: Block,
        index: NDArray[np.intp],
        K: int,
        covariance_type: str,
        reg_covar: float,
        random_state: np.random.RandomState,
    ) -> Group:
        x, weight = np.ascontiguousarray(block.X[index]), None if block.weight is None else block.weight[index]
        rows = ArrayRows(x, weight=weight)
        starts = [
            find_start(
                rows,
                K,
                covariance_type=covariance_type,
                reg_covar=reg_covar,
                random_state=random_state,
                init_params=init_params,
            )
            for init_params in ("short-em", "kmeans", "kmeans", "k-means++")
        ]
        if family(covariance_type).shared:
            starts += [_one_and_the_rest(x, weight, K, reg_covar, random_state) for _ in range(GROUP_RUNS)]
        ended = [run_em(MixtureEM(rows, reg_covar), start, tol=1e-5, max_iter=GROUP_ITERATIONS) for start in starts]
        best = max(ended, key=lambda state: state.log_likelihood)
        return cls(x, weight, block.design[index].mean(axis=0), best.params)

    def joined(self, mixture: MixtureParams) -> tuple[Floats, Floats]:
        """Return the shift (d,) and the weights (K,) that make this group's rows likeliest under a mixture."""
        heaviest = self.mixture.means[int(np.argmax(self.mixture.weights))]
        tried = [self.shifted(mixture, heaviest - mean) for mean in mixture.means]
        _, shift, weights = max(tried, key=lambda result: result[0])
        return shift, weights

    def shifted(self, mixture: MixtureParams, shift: Floats) -> tuple[float, Floats, Floats]:
        """Return the log-likelihood, shift and weights after some iterations of EM for the latter two."""
        weights = np.full(mixture.n_components, 1.0 / mixture.n_components)
        factors = mixture.full_factors()
        precisions = factors @ factors.swapaxes(1, 2)
        problem = Problem.of(mixture, n_rows=len(self.x))
        for _ in range(SHIFT_ITERATIONS):
            problem = replace(problem, params=replace(mixture, weights=weights))
            shares, density = normalised(log_joint(self.x - shift, problem))
            if self.weight is not None:
                shares *= self.weight[:, None]
            mass = shares.sum(axis=0)
            pull = np.einsum("kij,kj->i", precisions, shares.T @ self.x - mass[:, None] * mixture.means)
            shift = np.linalg.solve(np.tensordot(mass, precisions, 1), pull)
            weights = mass / mass.sum()
        return float(np.average(density, weights=self.weight)), shift, weights


def _one_and_the_rest(
    x: Floats, weight: Floats | None, K: int, reg_covar: float, random_state: np.random.RandomState
) -> MixtureParams:
    """Return a start of one frequent component amid the rows, the others among the rows far from it."""
    d = x.shape[1]
    w = np.ones(len(x)) if weight is None else weight
    mean = np.average(x, axis=0, weights=w)
    covariance = np.cov(x.T, aweights=w, ddof=0).reshape(d, d) + reg_covar * np.eye(d)
    mixture = make_params(np.ones(1), mean[None], covariance, "tied")
    z = (x - mean) @ mixture.factors
    distance = np.einsum("ij,ij->i", z, z)
    far = distance >= np.quantile(distance, 1 - FAR)
    centres = seed(np.ascontiguousarray(z[far].T), w[far], K - 1, random_state)[0]
    means = np.vstack([mean, mean + np.linalg.solve(mixture.factors.T, centres.T).T])
    weights = np.array([1 - FAR] + [FAR / (K - 1)] * (K - 1))
    return make_params(weights, means, covariance, "tied")


def _join(
    groups: list[Group],
    lead: int,
    covariance_type: str,
    reg_covar: float,
    gated: bool,
    random_state: np.random.RandomState,
    widths: Widths,
) -> list[MixtureParams]:
    """Return the starts that come of the groups' joining a leading one, the largest first.

    The second one has a mixture found anew among all rows, once they are where their shifts put them: clusters that
    the leading group lacks may have found no component.
    """
    first = groups[lead]
    order = [first] + [group for group in groups if group is not first]
    mixture = first.mixture
    K, d = mixture.means.shape
    shifts, weights = [np.zeros(d)], [mixture.weights]
    x, weight = first.x, first.weight
    for group in order[1:]:
        shift, share = group.joined(mixture)
        shifts.append(shift)
        weights.append(share)
        x = np.concatenate([x, group.x - shift])
        weight = None if weight is None or group.weight is None else np.concatenate([weight, group.weight])
        em = MixtureEM(ArrayRows(x, weight=weight), reg_covar)
        mixture = run_em(em, mixture, tol=1e-5, max_iter=GROUP_ITERATIONS).params
    anew = find_start(
        ArrayRows(x, weight=weight), K, covariance_type=covariance_type, reg_covar=reg_covar, random_state=random_state
    )
    again = [group.shifted(anew, shift)[1:] for group, shift in zip(order, shifts, strict=True)]
    centres = np.stack([group.centre for group in order])
    sizes = np.array([len(group.x) for group in order], dtype=float)
    return [
        _start_from(mixture, np.stack(shifts), np.stack(weights), centres, sizes, covariance_type, gated, widths),
        _start_from(
            anew,
            np.stack([shift for shift, _ in again]),
            np.stack([share for _, share in again]),
            centres,
            sizes,
            covariance_type,
            gated,
            widths,
        ),
    ]


def _matched(groups: list[Group], covariance_type: str, gated: bool, widths: Widths) -> list[MixtureParams]:
    """Return the starts that come of the likeliest matches of the groups' components, any with any."""
    rows = [float(len(group.x) if group.weight is None else group.weight.sum()) for group in groups]
    centres = np.stack([group.centre for group in groups])
    sizes = np.array([len(group.x) for group in groups], dtype=float)
    starts = []
    for mixture, shifts in likely_matches([group.mixture for group in groups], rows):
        again = [group.shifted(mixture, shift)[1:] for group, shift in zip(groups, shifts, strict=True)]
        found = np.stack([shift for shift, _ in again]), np.stack([share for _, share in again])
        starts.append(_start_from(mixture, *found, centres, sizes, covariance_type, gated, widths))
    return starts


def _start_from(
    mixture: MixtureParams,
    shifts: Floats,
    weights: Floats,
    centres: Floats,
    sizes: Floats,
    covariance_type: str,
    gated: bool,
    widths: Widths,
) -> MixtureParams:
    """Regress the groups' shifts and the logarithms of their weights on where they are."""
    places, centres = widths.of_gate(centres), widths.of_effects(centres)
    about = centres - np.average(centres, axis=0, weights=sizes)
    common = np.average(shifts, axis=0, weights=sizes)
    root = np.sqrt(sizes)[:, None]
    coef: Floats = np.asarray(np.linalg.lstsq(root * about, root * (shifts - common), rcond=1e-8)[0], dtype=np.float64)
    # shifts are about the leading group, coefficients about the mean of all rows
    means = mixture.means + common - np.average(centres, axis=0, weights=sizes) @ coef
    total = np.maximum(np.average(weights, axis=0, weights=sizes), 1e-12)
    start = replace(params_as(mixture, covariance_type), weights=total / total.sum(), means=means)
    if not gated:
        return replace(start, coef=coef)
    return replace(start, coef=coef, gate=gate_from(start.weights, weights, places, sizes))


def gate_from(common: Floats, weights: Floats, centres: Floats, sizes: Floats) -> Gate:
    """Regress the logarithms of the weights (G, K) of groups on where they are; `common` (K,) are those of all."""
    about, root = centres - np.average(centres, axis=0, weights=sizes), np.sqrt(sizes)[:, None]
    within = np.log(np.maximum(weights, 0.02))
    slopes = np.linalg.lstsq(root * about, root * (within - within.mean(axis=1, keepdims=True)), rcond=1e-8)[0]
    gate = constant_gate(common, centres.shape[1]).coef.copy()
    gate[:, :-1] = slopes.T
    return make_gate(gate)
