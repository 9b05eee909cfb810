r"""Mixing weights that depend on metadata: a multinomial logit, fitted by damped Newton steps.

.. math:: \pi_k(u) = \exp(\gamma_k' \tilde u) / \sum_l \exp(\gamma_l' \tilde u), \qquad \tilde u = [u, 1]

In EM the gate's share of the expected log-likelihood is a logit with soft targets r_ik. Along a step s its curvature
grows by at most exp(b), b the largest change of a difference of logits in any row (generalised self-concordance:
Bach 2010, "Self-concordant analysis for logistic regression", Electron. J. Stat. 4; Sun & Tran-Dinh 2019, Math.
Program. 178). So a Newton step shortened by log(1 + b) / b always gains, without looking at the rows again; and a
curvature computed at an earlier gate serves as long as b is small. Both are used here: the likelihood never falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gate", "GateMoments", "gate_moments", "gate_step", "log_priors", "make_gate"]

Floats = NDArray[np.float64]

# A curvature is used again while differences of logits have changed by at most this since it was computed.
STALE = 0.25
# Up to this many free parameters the curvature is the whole Hessian; above, its block-diagonal bound.
MAX_HESSIAN = 300
# Proximal damping per unit of weight: under perfect separation steps stay finite and logits grow ever more slowly.
DAMPING = 1e-8


@dataclass(frozen=True, slots=True)
class Gate:
    """Parameters of the logit, and the curvature last seen.

    Attributes
    ----------
    coef : ndarray (K, r + 1)
        Rows sum to 0 over components; the last column belongs to the constant. The others belong to the first r columns
        of u: further ones have effects only.
    curvature : ndarray or None
        Of the negative log-likelihood, per unit of weight: the Hessian ((K-1)(r+1), (K-1)(r+1)) for logits relative to
        the last component's, or a bound of it by one block per component (K, r+1, r+1).
    seen_at : ndarray (K, r + 1) or None
        Where it was computed.
    reach : ndarray (r + 1,) or None
        Largest absolute value of each column of u; last the largest Euclidean norm of a row.
    """

    coef: Floats
    curvature: Floats | None = None
    seen_at: Floats | None = None
    reach: Floats | None = None

    def columns_of(self, u: Floats) -> Floats:
        """Return the columns of u that the weights depend on."""
        return u[:, : self.coef.shape[1] - 1]

    def needs_curvature(self) -> bool:
        """Tell whether the curvature is missing or too far from where it was computed."""
        if self.curvature is None or self.seen_at is None or self.reach is None:
            return True
        return logit_change(self.coef - self.seen_at, self.reach) > STALE


@dataclass(slots=True)
class GateMoments:
    """What a step needs from the rows.

    Attributes
    ----------
    prior : ndarray (K, r + 1)
        Weighted sums of pi_k(u) [u, 1].
    curvature, reach : ndarray or None
        As in :class:`Gate`, the curvature not yet divided by the weight.
    """

    prior: Floats
    curvature: Floats | None
    reach: Floats | None

    def merge(self, other: GateMoments) -> GateMoments:
        """Add the moments of other rows, in place."""
        self.prior += other.prior
        if self.curvature is not None and other.curvature is not None:
            self.curvature += other.curvature
        if self.reach is not None and other.reach is not None:
            np.maximum(self.reach, other.reach, out=self.reach)
        return self


def make_gate(coef: Floats) -> Gate:
    """Return a gate with centred coefficients: adding a vector to every row of `coef` changes nothing."""
    return Gate(coef - coef.mean(axis=0))


def log_priors(u: Floats, coef: Floats) -> Floats:
    r"""Return :math:`\log \pi_k(u_i)`, shape (b, K).

    Parameters
    ----------
    u : ndarray (b, m)
        Of which the first r columns count.
    coef : ndarray (K, r + 1)
    """
    # components first: reductions over a short last axis are slow
    logits = coef[:, :-1] @ u[:, : coef.shape[1] - 1].T
    logits += coef[:, -1:]
    logits -= logits.max(axis=0)
    logits -= np.log(np.exp(logits).sum(axis=0))
    return np.ascontiguousarray(logits.T)


def gate_moments(u: Floats, log_prior: Floats, weight: Floats | None, *, curvature: bool) -> GateMoments:
    """Return the moments of one block.

    Parameters
    ----------
    u : ndarray (b, r)
    log_prior : ndarray (b, K)
        Of the current gate.
    weight : ndarray (b,), optional
    curvature : bool
        Whether curvature and reach are wanted, which cost more than the rest.
    """
    b, r = u.shape
    K = log_prior.shape[1]
    v = np.empty((b, r + 1))
    v[:, :r], v[:, r] = u, 1.0
    prior = np.exp(log_prior)
    weighted = prior if weight is None else prior * weight[:, None]
    sums = weighted.T @ v
    if not curvature:
        return GateMoments(sums, None, None)
    seen = u if weight is None else u[weight > 0]
    reach = np.append(np.abs(seen).max(axis=0, initial=0.0), np.sqrt((seen**2).sum(axis=1).max(initial=0.0)))
    if not _whole_hessian(K, r + 1):
        return GateMoments(sums, np.stack([(v * weighted[:, k : k + 1]).T @ v for k in range(K)]), reach)
    # sum_i w_i (diag(pi_i) - pi_i pi_i') (x) v_i v_i', last component left out
    z = (prior[:, : K - 1, None] * v[:, None, :]).reshape(b, -1)
    wz = z if weight is None else z * weight[:, None]
    hessian = -(wz.T @ z)
    diagonal = (wz.T @ v).reshape(K - 1, r + 1, r + 1)
    for k in range(K - 1):
        own = slice(k * (r + 1), (k + 1) * (r + 1))
        hessian[own, own] += diagonal[k]
    return GateMoments(sums, hessian, reach)


def gate_step(gate: Gate, target: Floats, moments: GateMoments, total: float) -> Gate:
    r"""Return a gate under which :math:`\sum_i w_i \sum_k r_{ik} \log \pi_k(u_i)` is larger, or as large.

    Parameters
    ----------
    gate : Gate
    target : ndarray (K, r + 1)
        Weighted sums of r_ik [u_i, 1].
    moments : GateMoments
        At `gate`; with a curvature, unless the gate has one that is recent enough.
    total : float
        Sum of the weights.
    """
    if moments.curvature is not None and moments.reach is not None:
        gate = Gate(gate.coef, moments.curvature / total, gate.coef, moments.reach)
    assert gate.curvature is not None and gate.seen_at is not None and gate.reach is not None
    gradient = (target - moments.prior) / total
    direction = _direction(gate.curvature, gradient)
    grown = logit_change(gate.coef - gate.seen_at, gate.reach)
    b = logit_change(direction, gate.reach)
    length = float(np.log1p(b * np.exp(-grown)) / b) if b > 1e-8 else float(np.exp(-grown))
    coef = gate.coef + length * direction
    return replace(gate, coef=coef - coef.mean(axis=0))


def _direction(curvature: Floats, gradient: Floats) -> Floats:
    """Return the Newton direction (K, r + 1)."""
    K, m = gradient.shape
    if curvature.ndim == 2:
        damped = curvature + DAMPING * np.eye(len(curvature))
        free = np.linalg.solve(damped, gradient[:-1].ravel()).reshape(K - 1, m)
        return np.vstack([free, np.zeros(m)])
    damped = curvature + DAMPING * np.eye(m)
    blocks = np.asarray(np.linalg.solve(damped, gradient[:, :, None]), dtype=np.float64)
    return blocks[:, :, 0]


def logit_change(step: Floats, reach: Floats) -> float:
    """Bound how much a difference of two logits changes in any row when the coefficients change by `step`."""
    spread = step.max(axis=0) - step.min(axis=0)
    by_box = reach[:-1] @ spread[:-1]
    slopes = step[:, :-1]
    apart = np.sqrt(((slopes[:, None, :] - slopes[None, :, :]) ** 2).sum(axis=2).max())
    return float(min(by_box, reach[-1] * apart) + spread[-1])


def _whole_hessian(K: int, m: int) -> bool:
    return (K - 1) * m <= MAX_HESSIAN
