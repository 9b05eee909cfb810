"""Groups of rows with like metadata, and a mixture of each alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.starts.sought import Sought
from residmix.em.loop import run_em
from residmix.kernels.clusters import lloyd, seed
from residmix.mixture.families.family import family
from residmix.mixture.iteration.estep import Problem, log_joint, normalised
from residmix.mixture.iteration.step import MixtureEM, block_log_joint
from residmix.mixture.params import MixtureParams, make_params
from residmix.mixture.starts import find_start
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows

__all__ = ["GROUP_ITERATIONS", "Group", "as_likely_as_groups", "groups_of"]

Floats = NDArray[np.float64]

MAX_GROUPS = 12
# Rows per parameter of a group's mixture, below which the group says nothing.
MIN_ROWS = 4
# Starts of a group's mixture with rare components, and the share of rows that they are looked for among.
GROUP_RUNS = 6
FAR = 0.04
# Iterations of a group's mixture, and of a group's shift.
GROUP_ITERATIONS = 20
SHIFT_ITERATIONS = 5
# A joint mixture falls behind the groups' own ones by half of the parameters that these have more, if it holds (Wilks
# 1938), and by more where groups are small. The share of these parameters that it may fall behind by, and of the rows
# that may be of other components.
BEHIND, UNSURE = 0.75, 0.1


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
    """Rows of like metadata, where they are, and a mixture of them alone.

    Attributes
    ----------
    index : ndarray (n,)
        The rows, in the block that they are from.
    x : ndarray (n, d)
    weight : ndarray (n,) or None
    centre : ndarray (r,)
        The mean of their design rows.
    mixture : MixtureParams
    log_likelihood : float
        Of the mixture, the sum over the rows.
    """

    index: NDArray[np.intp]
    x: Floats
    weight: Floats | None
    centre: Floats
    mixture: MixtureParams
    log_likelihood: float

    @classmethod
    def of(cls, block: Block, index: NDArray[np.intp], sought: Sought, covariance_type: str) -> Group:
        """Return some rows of a block, with a mixture of some family."""
        K, reg_covar, random_state = sought.n_components, sought.reg_covar, sought.random_state
        x, weight = np.ascontiguousarray(block.X[index]), None if block.weight is None else block.weight[index]
        rows = ArrayRows(x, weight=weight)
        how = {"covariance_type": covariance_type, "reg_covar": reg_covar, "random_state": random_state}
        starts = [find_start(rows, K, **how)]
        if family(covariance_type).shared:
            starts += [_one_and_the_rest(x, weight, K, reg_covar, random_state) for _ in range(GROUP_RUNS)]
        ended = [run_em(MixtureEM(rows, reg_covar), start, tol=1e-5, max_iter=GROUP_ITERATIONS) for start in starts]
        best = max(ended, key=lambda state: state.log_likelihood)
        total = len(x) if weight is None else weight.sum()
        return cls(index, x, weight, block.design[index].mean(axis=0), best.params, float(total * best.log_likelihood))

    @property
    def total(self) -> float:
        """The sum of the rows' weights."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

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


def as_likely_as_groups(params: MixtureParams, block: Block, groups: list[Group]) -> bool:
    """Tell whether a mixture given metadata is about as likely as the groups' own, is clear and has all components in
    each group.

    Where metadata are the same in each group, no such mixture is likelier than those of the groups, each at its best.
    Groups that lack components may be shifted in several ways that are nearly as likely.
    """
    assert params.coef is not None
    K, d = params.means.shape
    each = params.family.n_parameters(K, d) + K * d + K - 1
    gate = 0 if params.gate is None else (K - 1) * (params.gate.coef.shape[1] - 1)
    more = (len(groups) - 1) * each - params.coef.size - gate
    behind, unsure = 0.0, 0.0
    for group in groups:
        rows = block.select(group.index)
        shares, density = normalised(block_log_joint(Problem.of(params, n_rows=rows.n_rows), rows))
        w = np.ones(rows.n_rows) if rows.weight is None else rows.weight
        if (w @ shares).min() < params.family.rows_needed(d):
            return False
        behind += group.log_likelihood - float(w @ density)
        unsure += float(w @ (1.0 - shares.max(axis=1)))
    return behind <= BEHIND * more and unsure <= UNSURE * sum(group.total for group in groups)


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
