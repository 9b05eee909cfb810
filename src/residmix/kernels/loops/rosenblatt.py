"""Loops of `residmix.kernels.rosenblatt`, a row at a time.

Tails are summed as numbers, one error function a component, and as logarithms only where they are below `SMALLEST`.
"""

# numba infers the types of what follows from the call
# mypy: allow-untyped-defs

from __future__ import annotations

from math import erfc, exp, log, log1p, sqrt

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable
from residmix.kernels.compiled import compiled, piece
from residmix.kernels.rosenblatt import MOST_STEPS, NEAR, NOISE

__all__ = ["rows_of_scores", "scores_of_rows"]

Floats = NDArray[np.float64]

ROOT_HALF, LOG_ROOT_2PI = sqrt(0.5), 0.5 * log(2 * np.pi)
# Of tails as numbers: a sum above this has all its digits, and is above what any term that underflows would add.
SMALLEST = 1e-280
# Deviation from which the asymptotic series of a tail has all digits.
FAR = 25.0


def scores_of_rows(
    x: Floats, log_weights: Floats, means: Floats, factors: Floats, group: NDArray[np.int64], spread: Floats
) -> Floats:
    z, (K, d) = np.empty(x.shape), means.shape[1:]
    given = *map(readable, (x, log_weights, means, factors)), group.astype(np.int64), readable(spread)
    _scores(*given, np.empty(K), np.empty(K), np.empty((K, d)), z)
    return z


def rows_of_scores(
    z: Floats, log_weights: Floats, means: Floats, factors: Floats, group: NDArray[np.int64], spread: Floats
) -> Floats:
    x, (K, d) = np.empty(z.shape), means.shape[1:]
    given = *map(readable, (z, log_weights, means, factors)), group.astype(np.int64), readable(spread)
    _rows(*given, np.empty(K), np.empty(K), np.empty((K, d)), np.empty(K), np.empty(K), x)
    return x


@piece
def _series(t):
    """Return 1 - 1/t^2 + 3/t^4 - ...: a tail at t > FAR, over phi(t) / t (Abramowitz and Stegun 26.2.12)."""
    u = 1.0 / (t * t)
    return 1.0 - u * (1.0 - 3.0 * u * (1.0 - 5.0 * u * (1.0 - 7.0 * u * (1.0 - 9.0 * u * (1.0 - 11.0 * u)))))


@piece
def _log_tail(t):
    """Return log Phi(-t)."""
    if t > FAR:
        found = -0.5 * t * t - LOG_ROOT_2PI + log(_series(t) / t)
    elif t > 0.0:
        found = log(0.5 * erfc(t * ROOT_HALF))
    else:
        found = log1p(-0.5 * erfc(-t * ROOT_HALF))
    return found


@piece
def _tail_quantile(log_p):
    """Return t >= 0 with log Phi(-t) = log_p: a rational start (A. & S. 26.2.23), and two steps of Halley's."""
    s = sqrt(-2.0 * min(log_p, -0.6931471805599453))
    t = s - (2.515517 + s * (0.802853 + s * 0.010328)) / (1.0 + s * (1.432788 + s * (0.189269 + s * 0.001308)))
    for _ in range(2):
        tail = _log_tail(t)
        hazard = t / _series(t) if t > FAR else exp(-0.5 * t * t - LOG_ROOT_2PI - tail)
        u = (tail - log_p) / hazard
        t += u / (1.0 + 0.5 * (hazard - t) * u)
    return t


@piece
def _score(share, weight, e, j):
    """Return the score of a mixture with logarithms `share` of `weight` (K,), deviations e[:, j]."""
    below, above, K = 0.0, 0.0, len(share)
    for k in range(K):
        tail = 0.5 * erfc(abs(e[k, j]) * ROOT_HALF)
        if e[k, j] < 0.0:
            below += weight[k] * tail
            above += weight[k] * (1.0 - tail)
        else:
            below += weight[k] * (1.0 - tail)
            above += weight[k] * tail
    sign = -1.0 if below < above else 1.0
    smaller = min(below, above)
    if smaller > SMALLEST:
        log_p = log(smaller)
    else:
        top = -np.inf
        for k in range(K):
            top = max(top, share[k] + _log_tail(sign * e[k, j]))
        total = 0.0
        for k in range(K):
            total += exp(share[k] + _log_tail(sign * e[k, j]) - top)
        log_p = top + log(total)
    return sign * _tail_quantile(log_p)


@piece
def _normalise(share, weight):
    top, total, K = share[0], 0.0, len(share)
    for k in range(1, K):
        top = max(top, share[k])
    for k in range(K):
        total += exp(share[k] - top)
    top += log(total)
    for k in range(K):
        share[k] -= top
        weight[k] = exp(share[k])


@compiled
def _scores(x, log_weights, means, factors, group, spread, share, weight, e, z):
    (n, d), K = x.shape, len(share)
    for i in range(n):
        g = group[i]
        for k in range(K):
            share[k] = log_weights[i, k]
            weight[k] = exp(share[k])
        for j in range(d):
            for k in range(K):
                off = (x[i, j] - means[i, k, j]) / spread[i, k, j]
                for m in range(j):
                    off -= factors[g, k, j, m] * e[k, m]
                e[k, j] = off / factors[g, k, j, j]
            if K == 1:
                z[i, j] = e[0, j]
                continue
            z[i, j] = _score(share, weight, e, j)
            for k in range(K):
                share[k] -= 0.5 * e[k, j] * e[k, j] + log(factors[g, k, j, j] * spread[i, k, j])
            _normalise(share, weight)


@piece
def _root(z, share, weight, centre, own, e, j):
    K = len(share)
    low, high, x = np.inf, -np.inf, 0.0
    for k in range(K):
        quantile = centre[k] + own[k] * z
        low, high = min(low, quantile), max(high, quantile)
        x += weight[k] * quantile
    x = min(max(x, low), high)
    last = before = high - low
    for _ in range(MOST_STEPS):
        for k in range(K):
            e[k, j] = (x - centre[k]) / own[k]
        value = _score(share, weight, e, j)
        off = value - z
        if off < 0.0:
            low = x
        if off > 0.0:
            high = x
        slope = 0.0
        for k in range(K):
            slope += exp(share[k] - 0.5 * e[k, j] * e[k, j] + 0.5 * value * value) / own[k]
        near = abs(off) <= NOISE * max(1.0, abs(value))
        step = x - off / slope
        inside = step > low and step < high
        done = near or (inside and abs(step - x) <= NEAR * abs(x))
        # steps that don't shrink may go to and fro for ever
        if not inside or (not done and abs(step - x) > 0.5 * before):
            if near:
                break
            step = low + 0.5 * (high - low)
            done = abs(step - x) <= NEAR * abs(x)
        before, last = last, abs(step - x)
        x = step
        if done:
            break
    return x


@compiled
def _rows(z, log_weights, means, factors, group, spread, share, weight, e, centre, own, x):
    (n, d), K = z.shape, len(share)
    for i in range(n):
        g = group[i]
        for k in range(K):
            share[k] = log_weights[i, k]
            weight[k] = exp(share[k])
        for j in range(d):
            for k in range(K):
                along = 0.0
                for m in range(j):
                    along += factors[g, k, j, m] * e[k, m]
                centre[k] = means[i, k, j] + spread[i, k, j] * along
                own[k] = spread[i, k, j] * factors[g, k, j, j]
            x[i, j] = centre[0] + own[0] * z[i, j] if K == 1 else _root(z[i, j], share, weight, centre, own, e, j)
            for k in range(K):
                e[k, j] = (x[i, j] - centre[k]) / own[k]
                share[k] -= 0.5 * e[k, j] * e[k, j] + log(own[k])
            _normalise(share, weight)
