"""Loops between full covariances and vectors that can be extrapolated; their twins are in `residmix.kernels.plain`."""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import compiled

__all__ = ["full_of_vector", "vector_of_full"]

Floats = NDArray[np.float64]

# What stands for a weight of 0, whose logarithm isn't finite.
TINY = float(np.finfo(np.float64).tiny)


def vector_of_full(weights: Floats, means: Floats, factors: Floats, scale: Floats) -> Floats:
    K, d = means.shape
    vector = np.empty(K + K * d + K * d * (d + 1) // 2)
    _fill_vector(readable(weights), readable(means), readable(factors), scale, vector)
    return vector


@compiled
def _fill_vector(weights, means, factors, scale, vector):
    K, d = means.shape
    entry = K
    for k in range(K):
        vector[k] = np.log(max(weights[k], TINY))
        for j in range(d):
            vector[entry] = means[k, j] / scale[j]
            entry += 1
    for k in range(K):
        for i in range(d):
            vector[entry] = np.log(factors[k, i, i] * scale[i])
            entry += 1
            for j in range(i + 1, d):
                vector[entry] = factors[k, i, j] * scale[i]
                entry += 1


def full_of_vector(vector: Floats, scale: Floats, K: int, largest: float) -> tuple[Floats, Floats, Floats, Floats]:
    d = len(scale)
    made = np.empty(K), np.empty((K, d)), np.empty((K, d, d)), np.zeros((K, d, d))
    _fill_parameters_of(readable(vector), scale, largest, *made, np.zeros((d, d)))
    return made


@compiled
def _fill_parameters_of(vector, scale, largest, weights, means, covariances, factors, inverse):
    K, d = means.shape
    top, total, entry = -np.inf, 0.0, K
    for k in range(K):
        top = max(top, vector[k])
    for k in range(K):
        weights[k] = np.exp(vector[k] - top)
        total += weights[k]
        for j in range(d):
            means[k, j] = vector[entry] * scale[j]
            entry += 1
    for k in range(K):
        weights[k] /= total
        for i in range(d):
            factors[k, i, i] = np.exp(min(max(vector[entry], -largest), largest)) / scale[i]
            entry += 1
            for j in range(i + 1, d):
                factors[k, i, j] = vector[entry] / scale[i]
                entry += 1
        for j in range(d):
            inverse[j, j] = 1.0 / factors[k, j, j]
            for i in range(j - 1, -1, -1):
                rest = 0.0
                for m in range(i + 1, j + 1):
                    rest -= factors[k, i, m] * inverse[m, j]
                inverse[i, j] = rest / factors[k, i, i]
        for i in range(d):
            for j in range(i + 1):
                value = 0.0
                for m in range(j + 1):
                    value += inverse[m, i] * inverse[m, j]
                covariances[k, i, j] = covariances[k, j, i] = value
