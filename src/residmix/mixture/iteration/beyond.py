"""Components of rows whose squared distances overflow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from residmix.mixture.params import MixtureParams

__all__ = ["settle_beyond"]

Floats = NDArray[np.float64]

# Relative differences of squared distances that are rounding.
EQUAL = 1e-12


def settle_beyond(joint: Floats, x: NDArray[np.floating], params: MixtureParams) -> Floats:
    r"""Return log p(x, k), up to a constant for a row, also where squares overflow and it's -inf for all k.

    With normal components, :math:`x = c \hat x` and c large, :math:`\log p(x, k) = -c^2 \hat x' P_k \hat x / 2 +
    c\, \hat x' P_k \mu_k + O(1)`: the smallest quadratic form wins, among equals the largest linear one, among these
    the weights decide. With Student's t it is :math:`-(\nu_k + d) \log(c \sqrt{\hat x' P_k \hat x}) + O(1)`.
    """
    lost = np.flatnonzero(~np.isfinite(joint).any(axis=1))
    if not lost.size or params.noise is not None:
        return joint
    far = np.asarray(x[lost], dtype=np.float64)
    size = np.abs(far).max(axis=1, keepdims=True)
    unit = far / np.where(size > 0, size, 1.0)
    factors = params.full_factors()
    along = np.stack([unit @ factor for factor in factors], axis=1)
    level = np.log(np.maximum(np.abs(along).max(axis=(1, 2), keepdims=True), 1e-300))
    along = along * np.exp(-level)
    squares = np.where(params.weights > 0, (along**2).sum(axis=2), np.inf)
    settled = joint.copy()
    if params.dof is not None:
        with np.errstate(divide="ignore"):
            logs = np.log(size) + level[:, :, 0] + np.log(squares) / 2
        settled[lost] = params.log_weights + _tail(params, logs)
        return settled
    least = squares.min(axis=1, keepdims=True)
    first = squares <= least * (1 + EQUAL)
    shifts = np.stack([mean @ factor for mean, factor in zip(params.means, factors, strict=True)])
    linear = np.where(first, (along * shifts).sum(axis=2), -np.inf)
    most = linear.max(axis=1, keepdims=True)
    second = first & (linear >= most - EQUAL * np.abs(most))
    settled[lost] = np.where(second, params.log_weights, -np.inf)
    return settled


def _tail(params: MixtureParams, logs: Floats) -> Floats:
    """Return the logarithms of t densities (b, K) at large distances, of which these are the logarithms."""
    assert params.dof is not None
    half, d = params.dof / 2, params.n_features
    constant = params.log_det + gammaln(half + d / 2) - gammaln(half) + half * np.log(params.dof)
    return np.asarray(constant - (params.dof + d) * logs)
