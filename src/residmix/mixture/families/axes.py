"""Variances along given axes: volumes and shapes, each equal in all components or not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["axis_variances", "geometric_mean"]

Floats = NDArray[np.float64]

# Iterations end when nothing moves by more than this, relative to itself.
SETTLED = 1e-13
MOST = 1000


def geometric_mean(values: NDArray[np.floating]) -> Floats:
    """Return the geometric mean over the last axis."""
    return np.asarray(np.exp(np.log(values).mean(axis=-1)), dtype=np.float64)


def axis_variances(B: Floats, n: Floats, volume: str, shape: str, previous: Floats | None = None) -> Floats:
    r"""Return the :math:`\lambda_k a_{kj}` that minimise :math:`\sum_{kj} n_k (\log \lambda_k a_{kj} + B_{kj} /
    \lambda_k a_{kj})`, with :math:`\prod_j a_{kj} = 1`.

    Celeux & Govaert (1995), section 3. An equal shape with varying volumes has no closed form; it is convex in
    logarithms, so that halves which are exact given the other one lead to the one minimum.

    Parameters
    ----------
    B : ndarray (K, d)
        Variances along the axes of each component.
    n : ndarray (K,)
    volume : {"E", "V"}
    shape : {"I", "E", "V"}
    previous : ndarray (K, d), optional
        Where an iteration begins.

    Returns
    -------
    ndarray (K, d)
    """
    if shape == "I":
        B = np.repeat(B.mean(axis=1)[:, None], B.shape[1], axis=1)
        if volume == "V":
            return B
        shape = "E"  # one variance for all axes and components: their mean
    if volume == "E":
        if shape == "E":
            return np.repeat((n @ B)[None] / n.sum(), len(n), axis=0)
        size = geometric_mean(B)
        return np.asarray(B * (n @ size / n.sum() / size)[:, None])
    return B if shape == "V" else _common_shape(B, n, n @ B if previous is None else previous[0])


def _common_shape(B: Floats, n: Floats, a: Floats) -> Floats:
    a, size = a / geometric_mean(a), np.ones(len(n))
    for _ in range(MOST):
        before, size = size, (B / a).mean(axis=1)
        a = n @ (B / size[:, None])
        a = a / geometric_mean(a)
        if not np.abs(size - before).max() > SETTLED * size.max():
            break
    return size[:, None] * a
