"""Posterior means of shifts and variance ratios, with the empirical distribution over the other features as prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["free_posterior"]

Array = NDArray[np.float64]

# Weights of features for each other at a time: 32 megabytes.
_WEIGHTS = 4_194_304


def free_posterior(gamma: Array, delta: Array, n: Array) -> tuple[Array, Array]:
    r"""Return posterior means of shifts and variance ratios, each (K, d), under non-parametric priors.

    The prior of a feature's shift and ratio is the empirical distribution over the other features. With
    :math:`n\hat\gamma` and :math:`\hat\delta` of its own n rows in a level,

    .. math::
        \gamma_j^* = \frac{\sum_{l \ne j} w_{jl} \hat\gamma_l}{\sum_{l \ne j} w_{jl}}, \quad
        \delta_j^* = \frac{\sum_{l \ne j} w_{jl} \hat\delta_l}{\sum_{l \ne j} w_{jl}}, \quad
        w_{jl} = \hat\delta_l^{-n/2}
        \exp -\frac{n (\hat\gamma_j - \hat\gamma_l)^2 + (n - 1) \hat\delta_j}{2 \hat\delta_l}.

    Parameters
    ----------
    gamma, delta : ndarray (K, d)
        Estimated shifts and variance ratios (divisor n - 1).
    n : ndarray (K, d)
        Number of rows behind each. A level with one row has no ratio; it keeps 1. Features without any are no draws.

    References
    ----------
    Johnson, Li and Rabinovic, Biostatistics 8 (2007), supplement: integration over the empirical prior.
    """
    shifts, ratios = np.empty_like(gamma), np.empty_like(delta)
    for k in range(len(gamma) if gamma.size else 0):
        single = n[k] < 2
        own = np.where(single, 1.0, delta[k])
        shifts[k], ratios[k] = _of_level(gamma[k], np.maximum(own, np.finfo(float).tiny), n[k])
        ratios[k][single] = 1.0
        if np.count_nonzero(n[k]) == 1:  # no draws for the only feature with values
            shifts[k][n[k] > 0], ratios[k][n[k] > 0] = gamma[k][n[k] > 0], own[n[k] > 0]
    return shifts, ratios


def _of_level(gamma: Array, delta: Array, n: Array) -> tuple[Array, Array]:
    """Log-weights are products of a factor for each feature as data and one for each as a draw from the prior."""
    d = len(gamma)
    middle = np.median(gamma)  # so that large common shifts don't cancel
    g = gamma - middle
    datum = np.stack([n, n * g**2 + (n - 1.0) * delta, n * g], axis=1)
    draw = np.stack([-0.5 * np.log(delta) - 0.5 * g**2 / delta, -0.5 / delta, g / delta])
    values = np.stack([g, delta, np.ones(d)], axis=1)
    out = np.empty((d, 3))
    step = max(1, _WEIGHTS // d)
    for start in range(0, d, step):
        stop = min(start + step, d)
        weights = datum[start:stop] @ draw
        weights[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        weights[:, n == 0] = -np.inf
        weights -= weights.max(axis=1, keepdims=True)
        np.exp(weights, out=weights)
        out[start:stop] = weights @ values
    return middle + out[:, 0] / out[:, 2], out[:, 1] / out[:, 2]
