r"""Coefficients, gate and mixture by maximum likelihood together: the steps of ECM, as pure functions of moments.

.. math:: p(x \mid m) = \sum_k \pi_k(u) N(r - u'D \mid \mu_k, \Sigma_k)

r is the least-squares residual of x, u = u(m) the design row in orthonormal coordinates (centred, unit covariance),
and D the correction of the least-squares coefficients. Given responsibilities the M-step is: D and the means by
generalised least squares with the covariances fixed, then the covariances (Meng & Rubin 1993, "Maximum likelihood
estimation via the ECM algorithm", Biometrika 80); both from the same per-component moments of the row [u, r], so
repeating them costs no pass over the data. The gate (`residmix.conditional.gate`) has parameters of its own and
takes one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.coefficients import coefficient_step
from residmix.conditional.gate import Gate, GateMoments, gate_moments, gate_step, log_priors
from residmix.mixture import vector as mixture_vector
from residmix.mixture.estep import MixtureMoments, log_joint, mixture_block
from residmix.mixture.mstep import dead_components, m_step
from residmix.mixture.params import MixtureParams
from residmix.moments.absorbed import FactorMoments
from residmix.moments.affine import Affine
from residmix.moments.linear import LinearMoments
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold
from residmix.rows.scratch import scratch
from residmix.rows.threads import one_blas_thread

__all__ = [
    "ConditionalEM",
    "ConditionalMoments",
    "ConditionalParams",
    "Scored",
    "ToResidual",
    "conditional_block",
    "conditional_log_joint",
    "conditional_m_step",
    "pack",
    "to_residual",
    "unpack",
]

Floats = NDArray[np.float64]

# Rounds of (coefficients, covariances) per pass over the data.
CYCLES = 2
# A component that died this often in one fit stays dead.
MAX_REVIVALS = 5
# Directions of the design whose variance is below this share of the largest are aliased.
ALIASED = 1e-12


@dataclass(frozen=True, slots=True)
class ConditionalParams:
    """Parameters of the conditional mixture, in the coordinates of :class:`ToResidual`.

    Attributes
    ----------
    mixture : MixtureParams
        Of the residual; its weights are the average of the priors where there is a gate.
    coef : ndarray (r, d)
        D: correction of the least-squares coefficients.
    gate : Gate or None
        None for constant weights.
    """

    mixture: MixtureParams
    coef: Floats
    gate: Gate | None = None


@dataclass(frozen=True)
class ToResidual:
    """Block of (x, a) to block of (least-squares residual, orthonormal design row), both float64.

    Attributes
    ----------
    affine : Affine
        To the least-squares residual.
    basis : ndarray (p, r)
        u = (a - origin) basis - offset.
    offset : ndarray (r,)
    """

    affine: Affine
    basis: Floats
    offset: Floats

    def __call__(self, block: Block) -> Block:
        X = np.asarray(block.X, dtype=np.float64)
        residual, u = scratch(X.shape, np.float64), scratch((block.n_rows, self.basis.shape[1]), np.float64)
        self.affine.into(replace(block, X=X), residual)
        if block.design is not None and u.shape[1]:
            np.matmul(block.design[:, : len(self.basis)] - self.affine.origin_a, self.basis, out=u)
            u -= self.offset
        return Block(block.start, residual, u, (), block.weight)


def to_residual(affine: Affine, moments: LinearMoments | FactorMoments, p: int) -> ToResidual:
    """Return the map to least-squares residuals and to orthonormal, centred coordinates of the first p columns."""
    if isinstance(moments, FactorMoments):  # effects of thousands of levels: two stages only, which need no basis
        return ToResidual(affine, np.empty((p, 0)), np.empty(0))
    scatter = moments.s_aa[0][:p, :p] / moments.weight[0]
    scale = np.sqrt(np.diag(scatter))
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(scatter / scale[:, None] / scale) if p else (np.empty(0), np.empty((0, 0)))
    kept = values > ALIASED * max(values[-1], 0.0) if p else np.zeros(0, dtype=bool)
    basis = vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None]
    return ToResidual(affine, basis, (moments.mean_a[0][:p] - affine.origin_a) @ basis)


@dataclass(slots=True)
class ConditionalMoments:
    """Moments of the rows [u, r - u'D] about [0, mean_k], and the gate's."""

    mixture: MixtureMoments
    gate: GateMoments | None

    def merge(self, other: ConditionalMoments) -> ConditionalMoments:
        """Add the moments of other rows, in place."""
        self.mixture.merge(other.mixture)
        if self.gate is not None and other.gate is not None:
            self.gate.merge(other.gate)
        return self


def conditional_block(
    block: Block, params: ConditionalParams, *, joint: bool = True, with_moments: bool = True
) -> ConditionalMoments:
    """E-step and moments of one block in the coordinates of :class:`ToResidual`.

    Parameters
    ----------
    joint : bool
        False if the coefficients are to stay: unless a gate needs them, the moments are then those of r alone.
    with_moments : bool
        False for the likelihood alone, to the same bits.
    """
    u = block.design
    assert u is not None
    r = _without_effect(block.X, u, params.coef)
    prior = None if params.gate is None else log_priors(u, params.gate.coef)
    extra = u if joint or params.gate is not None else None
    moments = mixture_block(
        r, params.mixture, log_prior=prior, weight=block.weight, extra=extra, with_moments=with_moments
    )
    if params.gate is None or not with_moments:
        return ConditionalMoments(moments, None)
    assert prior is not None
    return ConditionalMoments(moments, gate_moments(u, prior, block.weight, curvature=params.gate.needs_curvature()))


def _without_effect(r: Floats, u: Floats, coef: Floats) -> Floats:
    return r - u @ coef if coef.any() else r


def conditional_log_joint(block: Block, params: ConditionalParams) -> Floats:
    r"""Return :math:`\log \pi_k(u_i) + \log N(r_i - u_i'D \mid \mu_k, \Sigma_k)`, shape (b, K)."""
    u = block.design
    assert u is not None
    prior = None if params.gate is None else log_priors(u, params.gate.coef)
    return log_joint(_without_effect(block.X, u, params.coef), params.mixture, log_prior=prior)


@dataclass(frozen=True)
class Scored:
    """`finish` of the block's log p(x, k | m), (b, K), as a picklable function of blocks."""

    to_residual: ToResidual
    params: ConditionalParams
    finish: Callable[[Floats], NDArray[Any]]

    def __call__(self, block: Block) -> NDArray[Any]:
        return self.finish(conditional_log_joint(self.to_residual(block), self.params))


def pack(params: ConditionalParams, like: ConditionalParams) -> Floats:
    """Return mixture, coefficients and gate as one unconstrained vector, free of the features' units."""
    gate = np.empty(0) if params.gate is None else params.gate.coef.ravel()
    coef = params.coef / mixture_vector.typical_spread(like.mixture)
    return np.concatenate([coef.ravel(), gate, mixture_vector.pack(params.mixture, like.mixture)])


def unpack(vector: Floats, like: ConditionalParams) -> ConditionalParams:
    """Return the parameters that `pack` made `vector` of; the curvature of the gate of `like` still holds there."""
    size = 0 if like.gate is None else like.gate.coef.size
    coef, gate, mixture = np.split(vector, [like.coef.size, like.coef.size + size])
    return ConditionalParams(
        mixture_vector.unpack(mixture, like.mixture),
        coef.reshape(like.coef.shape) * mixture_vector.typical_spread(like.mixture),
        None if like.gate is None else replace(like.gate, coef=gate.reshape(like.gate.coef.shape)),
    )


@dataclass(frozen=True)
class _Step:
    """`conditional_block` as a picklable function of blocks."""

    params: ConditionalParams
    joint: bool
    with_moments: bool = True

    def __call__(self, block: Block) -> ConditionalMoments:
        return conditional_block(block, self.params, joint=self.joint, with_moments=self.with_moments)


@dataclass
class ConditionalEM:
    """One iteration over rows: the `step` that `residmix.em.loop.run_em` asks for.

    Attributes
    ----------
    rows : Rows
        Mapped by :class:`ToResidual`.
    reg_covar : float
    joint : bool
        Whether the coefficients move; else only mixture and gate do.
    revived : list
        Components that died, one entry per time.
    """

    rows: Rows
    reg_covar: float
    joint: bool = True
    revived: list[list[int]] = field(default_factory=list)

    def __call__(self, params: ConditionalParams) -> tuple[float, ConditionalParams]:
        moments = fold(self.rows, _Step(params, self.joint), ConditionalMoments.merge)
        revive = len(self.revived) < MAX_REVIVALS
        dead = dead_components(moments.mixture)
        if dead.any() and revive:
            self.revived.append(np.flatnonzero(dead).tolist())
        with one_blas_thread():
            following = conditional_m_step(moments, params, reg_covar=self.reg_covar, joint=self.joint, revive=revive)
        return moments.mixture.log_likelihood / moments.mixture.total, following

    def evaluate(self, params: ConditionalParams) -> float:
        """Return the log-likelihood per row."""
        moments = fold(self.rows, _Step(params, self.joint, with_moments=False), ConditionalMoments.merge).mixture
        return moments.log_likelihood / moments.total


def conditional_m_step(
    moments: ConditionalMoments,
    params: ConditionalParams,
    *,
    reg_covar: float,
    joint: bool = True,
    revive: bool = True,
) -> ConditionalParams:
    """Return parameters with a larger expected log-likelihood, unless it is at its maximum.

    Parameters
    ----------
    moments : ConditionalMoments
        At `params`.
    reg_covar : float
        Added to the diagonals of covariances.
    joint : bool
        Whether the coefficients move.
    revive : bool
        As for `residmix.mixture.mstep.m_step`.

    Raises
    ------
    SingularCovarianceError
        If a component's rows don't span the space and `reg_covar` is 0.
    """
    mixture = params.mixture
    r = moments.mixture.shift.shape[1] - mixture.n_features
    step = np.zeros_like(params.coef)
    # With a covariance in common the first coefficients don't depend on it.
    cycles = 1 if mixture.family.shared or not (joint and r) else CYCLES
    for _ in range(cycles):
        if joint and r:
            step = coefficient_step(moments.mixture, r, mixture)
        about_residual = residual_moments(moments.mixture, step) if r else moments.mixture
        mixture = m_step(about_residual, params.mixture, reg_covar=reg_covar, revive=revive)
    gate = params.gate
    if gate is not None and moments.gate is not None:
        target = np.column_stack([moments.mixture.shift[:, :r], moments.mixture.weight])
        gate = gate_step(gate, target, moments.gate, moments.mixture.total)
        dead = dead_components(moments.mixture)
        if dead.any() and revive:
            gate = _share_gate(gate, moments.mixture.weight, dead)
    return ConditionalParams(mixture, params.coef + step, gate)


def _share_gate(gate: Gate, weight: Floats, dead: NDArray[np.bool_]) -> Gate:
    """Give each revived component half of the heaviest one's prior, as `m_step` gave it half of its rows."""
    coef, weight = gate.coef.copy(), np.where(dead, 0.0, weight)
    for k in np.flatnonzero(dead):
        heavy = int(np.argmax(weight))
        coef[heavy, -1] -= np.log(2.0)
        coef[k] = coef[heavy]
        weight[k] = weight[heavy] = 0.5 * weight[heavy]
    return Gate(coef - coef.mean(axis=0))


def residual_moments(moments: MixtureMoments, step: Floats) -> MixtureMoments:
    """Return the moments of r - u'step about the same means, from those of [u, r]."""
    q = len(step)
    change = np.vstack([-step, np.eye(step.shape[1])])
    return MixtureMoments(
        moments.weight.copy(),
        moments.shift[:, q:] - moments.shift[:, :q] @ step,
        change.T @ moments.scatter @ change,
        moments.log_likelihood,
        moments.total,
        moments.rows,
    )
