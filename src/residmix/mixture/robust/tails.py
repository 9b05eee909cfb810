r"""E-step and M-step with uniform noise or Student-t components.

.. math:: p(x) = \pi_0 / V + (1 - \pi_0) \sum_k \pi_k t(x \mid \mu_k, \Sigma_k, \nu_k)

V is the volume of the box that the rows lie in (Banfield & Raftery 1993, Biometrics 49). A t distribution is a normal
one whose precision is multiplied by a gamma variable, of expectation :math:`u_{ik} = (\nu_k + d) / (\nu_k +
\delta_{ik})` given the row, with :math:`\delta` the squared distance: rows far out count less (Peel & McLachlan 2000,
"Robust mixture modelling using the t distribution", Stat. Comput. 10). The M-step is that of normal components for
moments weighted by :math:`r_{ik} u_{ik}`; so families, coefficients and gates stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln

from residmix.mixture.given.by_component import effects_of
from residmix.mixture.iteration.estep import MixtureMoments, Problem, log_joint, normalised, responsibilities
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.cells import believed
from residmix.mixture.robust.errors import Unsure, chunk_rows, unsure
from residmix.mixture.robust.gaps import Gaps, by_patterns, gaps_of
from residmix.rows.block import Block

__all__ = ["TailMoments", "as_normal", "expected", "has_tails", "tail_block", "tail_joint", "with_new_tails"]

Floats = NDArray[np.float64]

# Degrees of freedom stay between these: below, there is no mean; above, tails are those of the normal.
DOF = (1.0, 200.0)
# Halvings of that interval, in logarithms.
HALVINGS = 40


@dataclass(slots=True)
class TailMoments:
    """What tails need besides.

    Attributes
    ----------
    noise : float
        Weighted sum of the rows' shares of noise.
    pull, spread : ndarray (K,)
        Weighted sums of r u, and of r (log u - u + digamma(h) - log h), h half the degrees of freedom given the row.
    design : ndarray (K, q)
        Weighted sums of r times the extra columns.
    """

    noise: float
    pull: Floats
    spread: Floats
    design: Floats

    def merge(self, other: TailMoments) -> None:
        """Add those of other rows, in place."""
        self.noise += other.noise
        self.pull += other.pull
        self.spread += other.spread
        self.design += other.design


def has_tails(params: MixtureParams) -> bool:
    """Tell whether there is noise, a t distribution, or may be missing values."""
    return params.noise is not None or params.dof is not None or params.missing


def tail_joint(
    problem: Problem,
    x: NDArray[np.floating],
    prior: Floats,
    design: Floats,
    errors: Floats | None = None,
    *,
    fill: bool = False,
) -> tuple[Floats, Floats, Gaps | None, Unsure | None]:
    """Return log p(x, k), (b, K), with the noise as one more column if there is any; u (b, K); what is said of gaps.

    Last what components say where there are errors; gaps are theirs then.

    Parameters
    ----------
    problem : Problem
    x : ndarray (b, d)
        Rows without the effect of metadata that components share.
    prior : ndarray (b, K) or (K,)
        Log-probabilities of the components, noise aside.
    design : ndarray (b, r)
        Without columns where nothing depends on metadata.
    errors : ndarray (b, d) or (b, d, d), optional
        Of measurement.
    fill : bool
        Whether missing values are to be filled.
    """
    params = problem.params
    effects = effects_of(params, design) if params.by_component else None
    K, d = params.means.shape
    size, log_det = np.full((len(x), 1), float(d)), np.broadcast_to(params.log_det, (len(x), K))
    gaps: Gaps | None = None
    blurred: Unsure | None = None
    if errors is not None:
        blurred = unsure(params, np.asarray(x, dtype=np.float64), errors, effects)
        distance, log_det, size = blurred.distance, blurred.log_det, (~np.isnan(x)).sum(axis=1, keepdims=True)
    elif params.missing and np.isnan(x).any():
        gaps = gaps_of(params, np.asarray(x, dtype=np.float64), effects, fill=fill)
        distance, log_det, size = gaps.distance, gaps.log_det, (~np.isnan(x)).sum(axis=1, keepdims=True)
    else:
        rows = x if effects is None else np.hstack([params.columns_of(design), x])
        distance = 2 * np.maximum(problem.constant - log_joint(rows, problem, log_prior=np.zeros((len(x), K))), 0.0)
    u = np.ones((len(x), K))
    if params.dof is None:
        joint = log_det - size / 2 * np.log(2 * np.pi) - distance / 2
    else:
        half = params.dof / 2
        constant = log_det + gammaln(half + size / 2) - gammaln(half) - size / 2 * np.log(np.pi * params.dof)
        joint = constant - (half + size / 2) * np.log1p(distance / params.dof)
        u = (params.dof + size) / (params.dof + distance)
    joint = joint + prior
    if params.noise is None:
        return joint, u, gaps, blurred
    weight, box = params.noise
    with np.errstate(divide="ignore"):
        volume = np.where(np.isnan(x), 0.0, np.log(box[1] - box[0])).sum(axis=1, keepdims=True)
        return np.hstack([joint + np.log1p(-weight), np.log(weight) - volume]), u, gaps, blurred


def tail_block(
    problem: Problem,
    block: Block,
    x: NDArray[np.floating],
    prior: Floats,
    extra: Floats | None,
    with_moments: bool,
    errors: Floats | None = None,
) -> tuple[MixtureMoments, Floats]:
    """E-step and moments of one block, `x` its rows without the effect of metadata; and what of each row is no noise.

    See :func:`residmix.mixture.iteration.step.block_moments`; with errors or many patterns of gaps a part at a time.
    """
    parts = _parts(problem.params, x, errors is not None)
    if len(parts) == 1:
        return _tail_chunk(problem, block, x, prior, extra, with_moments, errors)
    moments: MixtureMoments | None = None
    left = np.empty(len(x))
    for part in parts:
        own = prior if prior.ndim == 1 else prior[part]
        more, blur = (None if one is None else one[part] for one in (extra, errors))
        one, left[part] = _tail_chunk(problem, block.select(part), x[part], own, more, with_moments, blur)
        moments = one if moments is None else moments.merge(one)
    assert moments is not None
    return moments, left


def _parts(params: MixtureParams, x: NDArray[np.floating], errors: bool) -> list[slice | NDArray[np.intp]]:
    """Return the parts of the rows (b, d) for which there is room at once."""
    K, d = params.means.shape
    if errors:
        size = chunk_rows(K, d)
        return [slice(start, start + size) for start in range(0, len(x), size)]
    if params.missing and np.isnan(x).any():
        return list(by_patterns(x, K))
    return [slice(0, len(x))]


def _tail_chunk(
    problem: Problem,
    block: Block,
    x: NDArray[np.floating],
    prior: Floats,
    extra: Floats | None,
    with_moments: bool,
    errors: Floats | None,
) -> tuple[MixtureMoments, Floats]:
    params = problem.params
    K, d = params.means.shape
    joint, u, gaps, blurred = tail_joint(problem, x, prior, block.design, errors, fill=with_moments)
    effects = effects_of(params, block.design) if params.by_component else None
    share, density = normalised(joint)
    w = np.ones(len(x)) if block.weight is None else block.weight
    counted = w > 0
    log_likelihood = float(w[counted] @ density[counted])
    share *= np.where(np.isfinite(density), w, 0.0)[:, None]
    r = share[:, :K]
    pull = r * u
    q = 0 if extra is None else extra.shape[1]
    shift, scatter = np.zeros((K, q + d)), np.zeros((K, q + d, q + d))
    for k in range(K if with_moments else 0):
        known = gaps if blurred is None else blurred
        if known is None:
            away = (np.asarray(x, dtype=np.float64) if effects is None else x - effects[k]) - params.means[k]
        else:
            away = known.away[:, k]
        rows = away if extra is None else np.hstack([extra, away])
        weighted = rows * pull[:, k, None]
        shift[k], scatter[k] = weighted.sum(axis=0), weighted.T @ rows
        if gaps is not None:  # what isn't known of the missing values is spread, too
            scatter[k][q:, q:] += gaps.unknown(r[:, k], k)
        if blurred is not None:
            scatter[k][q:, q:] += np.tensordot(r[:, k], blurred.rest[:, k], 1)
    moments = MixtureMoments(
        r.sum(axis=0), shift, scatter, log_likelihood, float(w.sum()), int(np.count_nonzero(counted))
    )
    design = np.zeros((K, 0)) if extra is None else r.T @ extra
    spread = np.zeros(K)
    if params.dof is not None:
        half = (params.dof + d - np.isnan(x).sum(axis=1, keepdims=True)) / 2
        spread = (r * (np.log(u) - u + digamma(half) - np.log(half))).sum(axis=0)
    moments.tails = TailMoments(float(share[:, K:].sum()), pull.sum(axis=0), spread, design)
    return moments, r.sum(axis=1)


def expected(problem: Problem, x: Floats, prior: Floats, design: Floats) -> Floats:
    """Return the rows (b, d) with what is missing or set aside as the mixture expects it given the other values."""
    params, filled = problem.params, np.array(x)
    x = x if params.cells is None else believed(params, x, prior)[0]
    missing = np.isnan(x)
    for part in by_patterns(x, params.n_components) if missing.any() else []:
        u, share = design[part], prior if prior.ndim == 1 else prior[part]
        joint, _, gaps, _ = tail_joint(problem, x[part], share, u, fill=True)
        assert gaps is not None
        effects = effects_of(params, u) if params.by_component else None
        found = gaps.away + params.means
        found = found if effects is None else found + effects.swapaxes(0, 1)
        own = np.einsum("bk,bkd->bd", responsibilities(joint[:, : params.n_components]), found)
        filled[part] = np.where(missing[part], own, x[part])
    return filled


def as_normal(moments: MixtureMoments) -> MixtureMoments:
    """Return moments whose M-step for normal components is the one for these.

    Means are shift / pull and covariances (scatter - pull e e') / weight there, and both with the weight here.
    """
    tails: Any = moments.tails
    weight = np.where(moments.weight > 0, moments.weight, 1.0)
    ratio = np.where(tails.pull > 0, tails.pull / weight, 1.0)
    shift = moments.shift / ratio[:, None]
    e = shift / weight[:, None]
    more = (weight * (1 - ratio))[:, None, None] * e[:, :, None] * e[:, None, :]
    return replace(moments, shift=shift, scatter=moments.scatter + more)


def with_new_tails(mixture: MixtureParams, moments: MixtureMoments, before: MixtureParams) -> MixtureParams:
    """Return a mixture with the M-step's answer for noise and degrees of freedom."""
    tails: Any = moments.tails
    noise, dof = before.noise, before.dof
    if noise is not None:
        noise = (tails.noise / moments.total, noise[1])
    if dof is not None:
        weight = np.where(moments.weight > 0, moments.weight, 1.0)
        dof = _new_dof(tails.spread / weight)
    return replace(mixture, noise=noise, dof=dof, missing=before.missing)


def _new_dof(spread: Floats) -> Floats:
    """Return the root of Peel & McLachlan's equation for each component; its left side falls with the answer."""
    low, high = np.full(len(spread), np.log(DOF[0])), np.full(len(spread), np.log(DOF[1]))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        nu = np.exp(middle) / 2
        above = 1 + spread + np.log(nu) - digamma(nu) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray(np.exp((low + high) / 2))
