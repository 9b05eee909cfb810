"""Conversion of a mixture to one unconstrained vector, which can be extrapolated, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from residmix.em.loop import Acceleration
from residmix.kernels.pairs import full_of_vector, small, vector_of_full
from residmix.mixture.families.factor import aligned, composed
from residmix.mixture.given.by_group import at_group, averaged
from residmix.mixture.iteration.mstep import FEW_FEATURES
from residmix.mixture.params import MixtureParams, factor_covariances, make_params, params_from_factors
from residmix.mixture.robust.tails import DOF

__all__ = ["acceleration", "pack", "typical_spread", "unpack"]

Floats = NDArray[np.float64]

# Logarithms beyond this would overflow, or make what can't be told from 0.
LARGEST_LOG = 300.0


def typical_spread(params: MixtureParams) -> Floats:
    """Return the features' typical standard deviations within components, (d,)."""
    variances = params.family.diagonals(params.covariances)
    if variances.shape != params.means.shape:
        variances = np.broadcast_to(variances, params.means.shape)
    return np.sqrt(params.weights @ variances)


def acceleration(params: MixtureParams, n_rows: int, *, moves: bool) -> Acceleration[MixtureParams]:
    """Return how mixtures of the size of `params` are extrapolated in a fit to so many rows."""
    K, d = params.means.shape
    how: dict[str, Any] = {"plain": d > FEW_FEATURES or small(n_rows, K * d), "spread": _Remembered()}
    return Acceleration(partial(pack, **how), partial(unpack, **how), moves=moves)


class _Remembered:
    """`typical_spread` that remembers its last answer: the same mixture sets the units many times in a row."""

    def __init__(self) -> None:
        self._of: MixtureParams | None = None
        self._found = np.empty(0)

    def __call__(self, params: MixtureParams) -> Floats:
        if params is not self._of:
            self._of, self._found = params, typical_spread(params)
        return self._found


def pack(
    params: MixtureParams,
    like: MixtureParams,
    *,
    plain: bool = True,
    spread: Callable[[MixtureParams], Floats] = typical_spread,
) -> Floats:
    """Return the parameters as one unconstrained vector, free of the features' units.

    Log-weights, means over the typical spread of `like`, and the factors times it with the logarithm of their
    diagonals (of those that aren't kept as matrices the plain logarithm: units are a constant there): every vector is a
    valid mixture, so an extrapolated one is, too. Before them coefficients over the typical spread, the gate, noise
    and tails. Covariances of further groups of rows come last. With ``plain=False`` a compiled loop serves full
    covariances. `spread` is `typical_spread`, or finds the same.
    """
    if params.by_group is not None:
        first, *others = [pack(at_group(params, g), like, plain=plain) for g in range(params.by_group.n_groups)]
        given = _n_given(params) + params.n_components + params.means.size
        return np.concatenate([first, *(other[given:] for other in others)])
    scale = spread(like)
    factors, d = params.factors, params.n_features
    if params.parts is not None and like.parts is not None:
        return _pack_parts(params, like)
    if params.family.matrices:
        plain |= not params.family.free
        vector: Floats = vector_of_full(params.weights, params.means, factors.reshape(-1, d, d), scale, plain=plain)
    else:
        vector = np.concatenate([_logs(params.weights), (params.means / scale).ravel(), np.log(factors.ravel())])
    if _bare(params):
        return vector
    beside = np.empty(_n_given(params))
    _pack_given(params, scale, beside)
    return np.concatenate([beside, vector])


def _logs(weights: Floats) -> Floats:
    return np.log(np.maximum(weights, np.finfo(float).tiny))


def _pack_parts(params: MixtureParams, like: MixtureParams) -> Floats:
    """Return the vector of a factor-analytic mixture: loadings and own variances in place of the factors."""
    assert params.parts is not None and like.parts is not None
    scale = typical_spread(like)
    parts = aligned(params.parts, like.parts) / scale[:, None]
    parts[..., -1] = np.log(parts[..., -1])
    given = np.empty(_n_given(params))
    _pack_given(params, scale, given)
    return np.concatenate([given, _logs(params.weights), (params.means / scale).ravel(), parts.ravel()])


def _pack_given(params: MixtureParams, scale: Floats, given: Floats) -> None:
    """Write coefficients, gate, noise and tails."""
    whole = given
    if params.coef is not None:
        given[: params.coef.size] = (params.coef / scale).ravel()
    tails = _tails(params)
    given = given[: given.size - tails.size]
    whole[given.size : given.size + tails.size] = tails
    if params.gate is not None:
        given[given.size - params.gate.coef.size :] = params.gate.coef.ravel()


def _bare(params: MixtureParams) -> bool:
    """Tell whether there is nothing beside components; coefficients of no columns are something."""
    return params.coef is None and params.gate is None and params.noise is None and params.dof is None


def _n_given(params: MixtureParams) -> int:
    """Return how many numbers coefficients, gate and tails are."""
    coef, gate = params.coef, params.gate
    if _bare(params):
        return 0
    return (0 if coef is None else coef.size) + (0 if gate is None else gate.coef.size) + _tails(params).size


def _tails(params: MixtureParams) -> Floats:
    """Return the logit of the noise's weight and the logarithms of degrees of freedom, of those that there are."""
    noise = [] if params.noise is None else [logit(min(max(params.noise[0], 1e-300), 1 - 1e-16))]
    return np.append(noise, [] if params.dof is None else np.log(params.dof))


def unpack(
    whole: Floats,
    like: MixtureParams,
    *,
    plain: bool = True,
    spread: Callable[[MixtureParams], Floats] = typical_spread,
) -> MixtureParams:
    """Return the mixture that `pack` made a vector of; of a curved family the likeliest one nearby.

    The curvature of the gate of `like` still holds there.
    """
    if like.by_group is not None:
        return _unpack_groups(whole, like, plain)
    n_given = _n_given(like)
    given, scale = whole[:n_given], spread(like)
    params = _unpack_components(whole[n_given:], scale, like, plain)
    if like.missing or like.trim is not None or like.restraint is not None:
        params = replace(params, missing=like.missing, trim=like.trim, restraint=like.restraint)
    return params if _bare(like) else _unpack_given(given, scale, params, like)


def _unpack_components(vector: Floats, scale: Floats, like: MixtureParams, plain: bool) -> MixtureParams:
    """Return weights, means and covariances."""
    K, d = like.means.shape
    if like.family.matrices and like.parts is None:
        made: tuple[Floats, ...] = full_of_vector(vector, scale, K, LARGEST_LOG, plain=plain or not like.family.free)
        weights, means, covariances, factors = made
        shape = like.factors.shape
        covariances, factors = covariances.reshape(shape), factors.reshape(shape)
        return _nearest(MixtureParams(weights, means, covariances, factors, like.covariance_type), like)
    weights = np.exp(vector[:K] - vector[:K].max())
    weights /= weights.sum()
    means, rest = vector[K : K + K * d].reshape(K, d) * scale, vector[K + K * d :]
    if like.parts is not None:
        return _unpack_parts(weights, means, rest, scale, like)
    factors = np.exp(np.clip(rest, -LARGEST_LOG, LARGEST_LOG)).reshape(like.factors.shape)
    return _nearest(params_from_factors(weights, means, factors, like.covariance_type), like)


def _unpack_given(given: Floats, scale: Floats, params: MixtureParams, like: MixtureParams) -> MixtureParams:
    """Return the mixture with coefficients, gate, noise and tails."""
    if like.coef is not None:
        params = replace(params, coef=given[: like.coef.size].reshape(like.coef.shape) * scale)
    size = _tails(like).size
    given, tails = np.split(given, [given.size - size])
    if like.noise is not None:
        params = replace(params, noise=(float(expit(tails[0])), like.noise[1]))
    if like.dof is not None:
        params = replace(params, dof=np.clip(np.exp(np.minimum(tails[-len(like.dof) :], 99.0)), *DOF))
    if like.gate is not None:
        gate = given[given.size - like.gate.coef.size :].reshape(like.gate.coef.shape)
        params = replace(params, gate=replace(like.gate, coef=gate))
    return params


def _unpack_groups(whole: Floats, like: MixtureParams, plain: bool) -> MixtureParams:
    by = like.by_group
    assert by is not None
    given = _n_given(like) + like.n_components + like.means.size
    parts = np.split(whole[given:], by.n_groups)
    # the units are those of the average, as in `pack`
    each = [
        unpack(np.concatenate([whole[:given], part]), replace(like, by_group=None, factors=by.factors[g]), plain=plain)
        for g, part in enumerate(parts)
    ]
    covariances, factors = np.stack([one.covariances for one in each]), np.stack([one.factors for one in each])
    pooled = averaged(covariances, by.share, like.family.kept)
    return replace(
        each[0],
        covariances=pooled,
        factors=factor_covariances(pooled, like.family),
        by_group=replace(by, covariances=covariances, factors=factors),
    )


def _nearest(params: MixtureParams, like: MixtureParams) -> MixtureParams:
    """Return the likeliest mixture nearby that is of the family and within the bound of `like`."""
    bounded = like.restraint is not None and like.restraint.ratio is not None
    if like.family.closed and not bounded:
        return params
    W, weights = like.family.of_full(params.full_covariances(), params.weights), params.weights
    if bounded and like.restraint is not None:
        nearest, _ = like.restraint.fit(like.family, W, weights, None, None)
    else:
        nearest = like.family.fit(W, weights, like.full_covariances())
    return make_params(weights, params.means, nearest, like.covariance_type)


def _unpack_parts(weights: Floats, means: Floats, vector: Floats, scale: Floats, like: MixtureParams) -> MixtureParams:
    assert like.parts is not None
    parts = vector.reshape(like.parts.shape).copy()
    parts[..., -1] = np.exp(np.clip(parts[..., -1], -LARGEST_LOG, LARGEST_LOG))
    parts *= scale[:, None]
    return make_params(weights, means, composed(parts), like.covariance_type, parts)
