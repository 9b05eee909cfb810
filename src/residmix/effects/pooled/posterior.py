"""Posterior means of shifts and variance ratios, given priors whose parameters come from all features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["posterior", "posterior_shift"]

Array = NDArray[np.float64]


def posterior_shift(gamma: Array, delta: Array, n: Array) -> Array:
    r"""Posterior mean of shifts (K, d), :math:`(n \tau^2 \hat\gamma + \delta \bar\gamma) / (n \tau^2 + \delta)`."""
    common, spread = _over_features(gamma, np.broadcast_to(n > 0, gamma.shape))
    mean: Array = (n * spread * gamma + delta * common) / (n * spread + delta)
    return mean


def posterior(gamma: Array, delta: Array, n: Array) -> tuple[Array, Array]:
    r"""Return posterior means of shifts and variance ratios, each (K, d); Johnson et al. (2007), eq. 3.1.

    Parameters
    ----------
    gamma, delta : ndarray (K, d)
        Estimated shifts and variance ratios (divisor n - 1). A level with one row has no ratio; it keeps 1.
    n : ndarray (K, d)
        Rows behind each. Features without any say nothing of the prior, and get its mean.
    """
    single = n < 2
    common, between = _over_features(gamma, n > 0)
    mean, vary = _over_features(delta, ~single)
    # Equal ratios in all features would make the prior infinitely sharp.
    vary = np.maximum(vary, 1e-14 * mean**2 + 1e-300)
    shape, rate = (2 * vary + mean**2) / vary, (mean * vary + mean**3) / vary
    inside = (n - 1) * delta
    ratio = np.where(single, 1.0, delta)
    for _ in range(10_000):
        shifted = (n * between * gamma + ratio * common) / (n * between + ratio)
        sharper = (0.5 * (inside + n * (gamma - shifted) ** 2) + rate) / (0.5 * n + shape - 1)
        sharper = np.where(single, 1.0, sharper)
        moved = np.max(np.abs(sharper - ratio) / ratio, initial=0.0)  # of no features at all
        ratio = sharper
        if moved <= 1e-14:
            break
    return (n * between * gamma + ratio * common) / (n * between + ratio), ratio


def _over_features(values: Array, have: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return mean and variance, (K, 1) each, over the features that have values."""
    if have.all() or not have.any():
        return values.mean(axis=1, keepdims=True), values.var(axis=1, ddof=1, keepdims=True)
    count = have.sum(axis=1, keepdims=True)
    mean = np.sum(values, axis=1, keepdims=True, where=have) / np.maximum(count, 1)
    squares = np.sum((values - mean) ** 2, axis=1, keepdims=True, where=have)
    return mean, squares / np.maximum(count - 1, 1)
