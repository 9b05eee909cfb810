"""A mixture as one unconstrained vector, which can be extrapolated, and back."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from residmix.mixture.params import MixtureParams, make_params, params_from_factors
from residmix.mixture.robust.tails import DOF

__all__ = ["pack", "typical_spread", "unpack"]

Floats = NDArray[np.float64]

# Logarithms beyond this would overflow, or make what can't be told from 0.
LARGEST_LOG = 300.0


@lru_cache(maxsize=32)
def _triangle(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of an upper triangle's entries, row by row, and which of these are on the diagonal."""
    rows, columns = np.triu_indices(d)
    return rows, columns, np.flatnonzero(rows == columns)


def typical_spread(params: MixtureParams) -> Floats:
    """Return the features' typical standard deviations within components, (d,)."""
    variances = params.family.diagonals(params.covariances)
    if variances.shape != params.means.shape:
        variances = np.broadcast_to(variances, params.means.shape)
    return np.sqrt(params.weights @ variances)


def pack(params: MixtureParams, like: MixtureParams) -> Floats:
    """Return the parameters as one unconstrained vector, free of the features' units.

    Log-weights, means over the typical spread of `like`, and the factors times it with the logarithm of their
    diagonals (of those that aren't kept as matrices the plain logarithm: units are a constant there): every vector is a
    valid mixture, so an extrapolated one is, too. Before them coefficients over the typical spread, the gate, noise
    and tails.
    """
    scale = typical_spread(like)
    factors, (K, d) = params.factors, params.means.shape
    matrices = params.family.matrices
    n_matrices = factors.size // d**2
    whole = np.empty(_n_given(params) + K + K * d + (n_matrices * d * (d + 1) // 2 if matrices else factors.size))
    n_given = _n_given(params)
    given, vector = whole[:n_given], whole[n_given:]
    if params.coef is not None:
        given[: params.coef.size] = (params.coef / scale).ravel()
    tails = _tails(params)
    given = given[: given.size - tails.size]
    whole[given.size : given.size + tails.size] = tails
    if params.gate is not None:
        given[given.size - params.gate.coef.size :] = params.gate.coef.ravel()
    np.log(np.maximum(params.weights, np.finfo(float).tiny), out=vector[:K])
    np.divide(params.means, scale, out=vector[K : K + K * d].reshape(K, d))
    if matrices:
        triangles = vector[K + K * d :].reshape(n_matrices, -1)
        rows, columns, on_diagonal = _triangle(d)
        np.multiply(factors.reshape(-1, d, d)[:, rows, columns], scale[rows], out=triangles)
        triangles[:, on_diagonal] = np.log(triangles[:, on_diagonal])
    else:
        np.log(factors.ravel(), out=vector[K + K * d :])
    return whole


def _n_given(params: MixtureParams) -> int:
    """Return how many numbers coefficients, gate and tails are."""
    coef, gate = params.coef, params.gate
    return (0 if coef is None else coef.size) + (0 if gate is None else gate.coef.size) + _tails(params).size


def _tails(params: MixtureParams) -> Floats:
    """Return the logit of the noise's weight and the logarithms of degrees of freedom, of those that there are."""
    noise = [] if params.noise is None else [logit(min(max(params.noise[0], 1e-300), 1 - 1e-16))]
    return np.append(noise, [] if params.dof is None else np.log(params.dof))


def unpack(whole: Floats, like: MixtureParams) -> MixtureParams:
    """Return the mixture that `pack` made a vector of; of a curved family the likeliest one nearby.

    The curvature of the gate of `like` still holds there.
    """
    scale = typical_spread(like)
    n_given = _n_given(like)
    given, vector = whole[:n_given], whole[n_given:]
    K, d = like.means.shape
    weights = np.exp(vector[:K] - vector[:K].max())
    weights /= weights.sum()
    means, rest = vector[K : K + K * d].reshape(K, d) * scale, vector[K + K * d :]
    if like.family.matrices:
        rows, columns, on_diagonal = _triangle(d)
        triangles = rest.reshape(-1, len(rows)).copy()
        triangles[:, on_diagonal] = np.exp(np.clip(triangles[:, on_diagonal], -LARGEST_LOG, LARGEST_LOG))
        factors = np.zeros(like.factors.shape)
        factors.reshape(-1, d, d)[:, rows, columns] = triangles / scale[rows]
    else:
        factors = np.exp(np.clip(rest, -LARGEST_LOG, LARGEST_LOG)).reshape(like.factors.shape)
    params = params_from_factors(weights, means, factors, like.covariance_type)
    if not like.family.closed:
        W = like.family.of_full(params.full_covariances(), weights)
        nearest = like.family.fit(W, weights, like.full_covariances())
        params = make_params(weights, means, nearest, like.covariance_type)
    if like.coef is not None:
        params = replace(params, coef=given[: like.coef.size].reshape(like.coef.shape) * scale)
    size = _tails(like).size
    given, tails = np.split(given, [given.size - size])
    if like.noise is not None:
        params = replace(params, noise=(float(expit(tails[0])), like.noise[1]))
    if like.dof is not None:
        params = replace(params, dof=np.clip(np.exp(np.minimum(tails[-len(like.dof) :], 99.0)), *DOF))
    params = replace(params, missing=True) if like.missing else params
    if like.gate is not None:
        gate = given[given.size - like.gate.coef.size :].reshape(like.gate.coef.shape)
        params = replace(params, gate=replace(like.gate, coef=gate))
    return params
