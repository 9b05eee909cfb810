r"""One EM iteration of the mixture, with coefficients and a gate where there are metadata: ECM.

.. math:: p(x \mid m) = \sum_k \pi_k(u) N(x - u'D_k \mid \mu_k, \Sigma_k)

Rows come with u = u(m), their design in orthonormal coordinates (centred, unit covariance), and without one for a
plain mixture. Given responsibilities the M-step is: a D that components share and the means by generalised least
squares with the covariances fixed, then the covariances (Meng & Rubin 1993, "Maximum likelihood estimation via the ECM
algorithm", Biometrika 80); both from the same per-component moments of the row [u, x], so repeating them costs no pass
over the data. A D_k of each component doesn't depend on covariances (`residmix.mixture.given.by_component`). The gate
(`residmix.mixture.given.gate`) has parameters of its own and takes one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.mixture.families.restraint import Prior
from residmix.mixture.given.by_component import heirs, own_coefficients
from residmix.mixture.given.coefficients import coefficient_step
from residmix.mixture.given.gate import Gate, gate_moments, gate_step, log_priors
from residmix.mixture.iteration.estep import MixtureMoments, Problem, log_joint, mixture_block, normalised
from residmix.mixture.iteration.groups import grouped_joint, grouped_moments, grouped_step, over_groups
from residmix.mixture.iteration.mstep import dead_components, m_step, ordinary_step
from residmix.mixture.iteration.near import near_block, own_problems
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.cells import believed
from residmix.mixture.robust.errors import chunk_rows
from residmix.mixture.robust.tails import as_normal, has_tails, tail_block, tail_joint, with_new_tails
from residmix.mixture.robust.trimming import Masked, kept_weights
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = [
    "MixtureEM",
    "believed_block",
    "block_log_joint",
    "block_moments",
    "ecm_step",
    "rows_and_priors",
    "with_prior_rows",
]

Floats = NDArray[np.float64]

# Rounds of (coefficients, covariances) per pass over the data.
CYCLES = 2
# A component that died this often in one fit stays dead: there's no room for it.
MAX_REVIVALS = 5


@dataclass
class MixtureEM:
    """One iteration over rows: the `step` that `residmix.em.loop.run_em` asks for.

    Attributes
    ----------
    rows : Rows
    reg_covar : float, or ndarray as for `residmix.mixture.iteration.mstep.covariances_from_scatter`
    joint : bool
        Whether coefficients move; else only mixture and gate do.
    revived : list
        Components that died, one entry per time.
    total : float
        Sum of the rows' weights, once they have been seen; else 0.
    errors : ndarray (n, d) or (n, d, d), optional
        Covariances of the rows' measurement errors.
    single : bool, for `Problem.of`
    near : ndarray of int (n, C), optional
        The components that are looked at for each row; by default all.
    """

    rows: Rows
    reg_covar: float | Floats
    joint: bool = True
    revived: list[list[int]] = field(default_factory=list)
    total: float = 0.0
    errors: Floats | None = None
    single: bool = False
    near: NDArray[np.int32] | None = None

    def __call__(self, params: MixtureParams) -> tuple[float, MixtureParams]:
        moments = self.moments(params)
        if params.bare and (ordinary := ordinary_step(moments, params, self.reg_covar)) is not None:
            return moments.log_likelihood / moments.total, ordinary
        if params.by_group is not None:
            return self._objective(moments, params), ecm_step(moments, params, reg_covar=self.reg_covar)
        dead, revive = dead_components(moments), len(self.revived) < MAX_REVIVALS
        # a component without rows still has its prior
        if revive and dead.any() and (params.restraint is None or params.restraint.prior is None):
            self.revived.append(np.flatnonzero(dead).tolist())
        following = ecm_step(moments, params, reg_covar=self.reg_covar, joint=self.joint, revive=revive)
        return self._objective(moments, params), following

    def evaluate(self, params: MixtureParams) -> float:
        """Return the log-likelihood per row; with a prior the log-posterior, over the rows."""
        return self._objective(self.moments(params, with_moments=False), params)

    @staticmethod
    def _objective(moments: MixtureMoments, params: MixtureParams) -> float:
        return (moments.log_likelihood + log_prior_density(params)) / moments.total

    def kept(self, params: MixtureParams) -> tuple[Rows, float]:
        """Return the rows that count at `params`, and the log-density that these have at least."""
        if params.trim is None:
            return self.rows, -np.inf
        problem = Problem.of(params, n_rows=self.rows.n_rows)
        found = list(self.rows.map(partial(_densities, problem, self.errors)))
        density, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
        left, threshold = kept_weights(density, weight, params.trim[0])
        return self.rows.mapped(Masked(left)), threshold

    def moments(self, params: MixtureParams, *, with_moments: bool = True) -> MixtureMoments:
        """Return the moments of all rows: see :func:`block_moments`."""
        with_design = _joins(params, self.joint) or params.by_group is not None
        single = self.single and self.rows.dtype == np.float32
        problem = Problem.of(params, full=with_design, n_rows=self.rows.n_rows, single=single)
        near = None if self.near is None else (own_problems(problem, weighted=params.gate is None), self.near)
        how: dict[str, Any] = {"with_design": with_design, "with_moments": with_moments}
        step = partial(block_moments, problem, **how, errors=self.errors, near=near)
        moments = fold(self.kept(params)[0], step, MixtureMoments.merge)
        self.total = moments.total
        return moments


def log_prior_density(params: MixtureParams) -> float:
    """Return the logarithm of the density that a prior gives to parameters; 0 without one."""
    prior = None if params.restraint is None else params.restraint.prior
    return 0.0 if prior is None else prior.log_density(params)


def _densities(problem: Problem, errors: Floats | None, block: Block) -> tuple[Floats, Floats]:
    density = normalised(block_log_joint(problem, block, errors))[1]
    return density, np.ones(block.n_rows) if block.weight is None else block.weight


def _joins(params: MixtureParams, joint: bool) -> bool:
    """Tell whether the moments must be those of [u, x], as coefficients that move and a gate ask for."""
    return params.gate is not None or (joint and params.n_design > 0)


def block_moments(
    problem: Problem,
    block: Block,
    *,
    with_design: bool,
    with_moments: bool = True,
    errors: Floats | None = None,
    near: tuple[list[Problem], NDArray[np.int32]] | None = None,
) -> MixtureMoments:
    """E-step and moments of one block.

    Parameters
    ----------
    problem : Problem
    block : Block
    with_design : bool
        Whether moments are those of [u, x - u'D] about [0, mean_k], or of x - u'D alone. With effects by component
        they are those of [u, x], or, if there are tails or effects are steep, of [u, x - u'D_k].
    with_moments : bool
        False for the likelihood alone, to the same bits.
    errors : ndarray (n, d) or (n, d, d), optional
        Of measurement, of all rows.
    near : tuple of list of Problem and ndarray of int (n, C), optional
        The components alone, and which to look at, of all rows.
    """
    how: dict[str, Any]
    params, u = problem.params, block.design
    if problem.groups:
        step = partial(block_moments, with_design=with_design, with_moments=with_moments)
        return grouped_moments(problem, block, step)
    if params.cells is not None:
        seen, without = believed_block(params, block), replace(problem, params=replace(params, cells=None))
        how = {"with_design": with_design, "with_moments": with_moments}
        moments = block_moments(without, seen, **how)
        cost = (np.isnan(seen.X) & ~np.isnan(block.X)) @ params.cells / 2
        moments.log_likelihood -= float(cost.sum() if block.weight is None else block.weight @ cost)
        return moments
    gate = params.gate
    prior = None if gate is None else log_priors(u, gate.coef)
    x, extra = _without_effect(block, params), u if with_design else None
    weight = block.weight
    if has_tails(params) or problem.steep or errors is not None:
        given = params.log_weights if prior is None else prior
        own = _own_errors(errors, block)
        moments, weight = tail_block(problem, block, x, given, extra, with_moments, own)
    else:
        if params.by_component:
            x, extra = _joined(block, params), u[:, : u.shape[1] - params.n_design] if with_design else None
            extra = extra if extra is not None and extra.shape[1] else None
        how = {"log_prior": prior, "weight": weight, "extra": extra, "with_moments": with_moments}
        if near is None:
            moments = mixture_block(x, problem, **how)
        else:
            alone, sets = near
            moments = near_block(x, problem, alone, sets[block.start : block.start + block.n_rows], **how)
    if gate is not None and prior is not None and with_moments:
        moments.gate = gate_moments(gate.columns_of(u), prior, weight, curvature=gate.needs_curvature())
    return moments


def _own_errors(errors: Floats | None, block: Block) -> Floats | None:
    return None if errors is None else errors[block.start : block.start + block.n_rows]


def block_log_joint(problem: Problem, block: Block, errors: Floats | None = None) -> Floats:
    r"""Return :math:`\log \pi_k(u_i) + \log N(x_i - u_i'D \mid \mu_k, \Sigma_k)`, shape (b, K); noise is one more."""
    params = problem.params
    if problem.groups:
        return grouped_joint(problem, block, block_log_joint)
    if params.cells is not None:
        rest, given = rows_and_priors(params, block)
        seen, cost = believed(params, rest, given)
        return tail_joint(problem, seen, given, block.design)[0] - cost[:, None]
    prior = None if params.gate is None else log_priors(block.design, params.gate.coef)
    x = _without_effect(block, params)
    given = params.log_weights if prior is None else prior
    if errors is not None:
        own, size = errors[block.start : block.start + block.n_rows], chunk_rows(*params.means.shape)
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        shares = [given if given.ndim == 1 else given[part] for part in parts]
        chunks = zip(parts, shares, strict=True)
        return np.concatenate(
            [tail_joint(problem, x[part], share, block.design[part], own[part])[0] for part, share in chunks]
        )
    if has_tails(params):
        return tail_joint(problem, x, given, block.design)[0]
    return log_joint(_joined(block, params) if params.by_component else x, problem, log_prior=prior)


def rows_and_priors(params: MixtureParams, block: Block) -> tuple[Floats, Floats]:
    """Return rows less the effect that components share, and the components' log-probabilities (K,) or (b, K)."""
    x = np.asarray(_without_effect(block, params), dtype=np.float64)
    return x, params.log_weights if params.gate is None else log_priors(block.design, params.gate.coef)


def believed_block(params: MixtureParams, block: Block) -> Block:
    """Return a block with NaN for the values that are set aside."""
    out = np.isnan(believed(params, *rows_and_priors(params, block))[0])
    return replace(block, X=np.where(out, np.nan, block.X))


def _without_effect(block: Block, params: MixtureParams) -> NDArray[np.floating]:
    """Return the rows less the effect that components share, if there is one."""
    if params.coef is None or params.by_component or not params.coef.any():
        return block.X
    return block.X - params.columns_of(block.design) @ params.coef


def _joined(block: Block, params: MixtureParams) -> Floats:
    return np.hstack([params.columns_of(block.design), block.X])


def with_effects_only(moments: MixtureMoments, params: MixtureParams) -> MixtureMoments:
    """Return moments of [u, x] without the first columns of u, where these belong to the gate alone."""
    lead = moments.shift.shape[1] - params.n_features - params.n_design
    if params.coef is None or lead <= 0:
        return moments
    shift, scatter = moments.shift[:, lead:], moments.scatter[:, lead:, lead:]
    return replace(moments, shift=np.ascontiguousarray(shift), scatter=np.ascontiguousarray(scatter))


def ecm_step(
    moments: MixtureMoments,
    params: MixtureParams,
    *,
    reg_covar: float | Floats,
    joint: bool = True,
    revive: bool = True,
) -> MixtureParams:
    """Return parameters with a larger expected log-likelihood, unless it is at its maximum.

    Parameters
    ----------
    moments : MixtureMoments
        At `params`.
    reg_covar : float, or ndarray
        Added to the diagonals of covariances, or to these.
    joint : bool
        Whether the coefficients move.
    revive : bool
        As for `residmix.mixture.iteration.mstep.m_step`.

    Raises
    ------
    SingularCovarianceError
        If a component's rows don't span the space and `reg_covar` is 0.
    """
    if params.by_group is not None:
        following = grouped_step(with_effects_only(moments, params), params, reg_covar)
        whole = over_groups(moments, params.n_components)
        return replace(following, gate=_gate_after(whole, params, whole.shift))
    gate, coef, told = params.gate, params.coef, moments
    if moments.tails is not None:
        moments = as_normal(moments)
    if params.restraint is not None and params.restraint.prior is not None:
        moments = with_prior_rows(moments, params, params.restraint.prior)
    whole, moments = moments, with_effects_only(moments, params)
    r = moments.shift.shape[1] - params.n_features
    if not r:
        mixture = m_step(moments, params, reg_covar=reg_covar, revive=revive)
    elif params.by_component:
        coef, mixture = _own_step(moments, params, told, reg_covar, revive)
    else:
        mixture, step = params, np.zeros((r, params.n_features))
        # With a covariance in common the first coefficients don't depend on it.
        for _ in range(1 if params.family.shared or not joint else CYCLES):
            if joint:
                step = coefficient_step(moments, r, mixture)
            mixture = m_step(residual_moments(moments, step), params, reg_covar=reg_covar, revive=revive)
        coef = step if coef is None else coef + step
    if gate is not None and moments.gate is not None:
        gate = _gate_after(moments, params, whole.shift if told.tails is None else told.tails.design)
        dead = dead_components(told)
        if dead.any() and revive:
            assert gate is not None
            gate = _share_gate(gate, moments.weight, dead)
    if coef is not None or gate is not None:
        mixture = replace(mixture, coef=coef, gate=gate)
    if params.trim is not None:
        mixture = replace(mixture, trim=params.trim)
    return mixture if told.tails is None else with_new_tails(mixture, told, params)


def _gate_after(moments: MixtureMoments, params: MixtureParams, design: Floats) -> Gate | None:
    """Return the gate after a step; `design` begins with the weighted sum of u by component."""
    if params.gate is None or moments.gate is None:
        return params.gate
    target = np.column_stack([params.gate.columns_of(design), moments.weight])
    return gate_step(params.gate, target, moments.gate, moments.total)


def _own_step(
    moments: MixtureMoments, params: MixtureParams, told: MixtureMoments, reg_covar: float | Floats, revive: bool
) -> tuple[Floats, MixtureParams]:
    """Return the coefficients of each component and the mixture about them."""
    assert params.coef is not None
    # what the moments' rows have been taken less of: see `block_moments`
    base = np.zeros(params.coef.shape) if told.tails is None else params.coef
    step = own_coefficients(moments, base)
    mixture = m_step(residual_moments(moments, step), params, reg_covar=reg_covar, revive=revive)
    coef, dead = base + step, dead_components(moments)
    coef[dead] = params.coef[dead]
    if revive:
        for k, heavy in heirs(moments.weight, dead):
            coef[k] = coef[heavy]
    return coef, mixture


def with_prior_rows(moments: MixtureMoments, params: MixtureParams, prior: Prior) -> MixtureMoments:
    r"""Return moments with :math:`\kappa` more rows for each component, at the prior's mean.

    That's what a normal prior of a mean, :math:`N(\mu_P, \Sigma_k / \kappa)`, is to the M-step, also of coefficients.
    """
    of, away = params.family, prior.mean - params.means
    q = moments.shift.shape[1] - away.shape[1]
    away = np.hstack([np.zeros((len(away), q)), away])
    shift = moments.shift + prior.strength * away
    if moments.scatter.ndim == 3:
        scatter = moments.scatter + prior.strength * away[:, :, None] * away[:, None, :]
    elif of.diagonal:
        scatter = moments.scatter + prior.strength * away**2
    else:
        scatter = moments.scatter + prior.strength * away.T @ away
    return replace(moments, weight=moments.weight + prior.strength, shift=shift, scatter=scatter)


def _share_gate(gate: Gate, weight: Floats, dead: NDArray[np.bool_]) -> Gate:
    """Give each revived component half of the heaviest one's prior, as `m_step` gave it half of its rows."""
    coef = gate.coef.copy()
    for k, heavy in heirs(weight, dead):
        coef[heavy, -1] -= np.log(2.0)
        coef[k] = coef[heavy]
    return Gate(coef - coef.mean(axis=0))


def residual_moments(moments: MixtureMoments, step: Floats) -> MixtureMoments:
    """Return the moments of x - u'step about the same means, from those of [u, x]; `step` is (q, d) or (K, q, d)."""
    q, d = step.shape[-2:]
    change = np.concatenate([-step, np.broadcast_to(np.eye(d), (*step.shape[:-2], d, d))], axis=-2)
    shift = moments.shift[:, q:] - (moments.shift[:, None, :q] @ step)[:, 0]
    scatter = np.swapaxes(change, -1, -2) @ moments.scatter @ change
    return replace(moments, weight=moments.weight.copy(), shift=shift, scatter=scatter)
