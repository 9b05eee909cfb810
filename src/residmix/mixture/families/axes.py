"""Variances along given axes: volumes and shapes, each equal in all components or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["axis_variances", "geometric_mean", "settled_sizes"]

Floats = NDArray[np.float64]

# Iterations end when no component is off by more than this share of the rows.
SETTLED = 1e-13
MOST = 1000
# What is left may be rounding from here on.
NOISE = 1e-8
# A sum smaller than the last but for this, relative to it, hasn't grown.
ROUNDING = 1e-14
# Newton's steps, of logarithms, count up to this length as near the minimum, and below that one as the last.
FAR, NEAR = 1.0, 1e-8


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
    def shares(size: Floats) -> tuple[Floats, float]:
        each = (n / size)[:, None] * B
        total = each.sum(axis=0)
        return each / total, float(np.log(total).sum())

    size = settled_sizes((B / (a / geometric_mean(a))).mean(axis=1), n, B.shape[1], shares)
    a = n @ (B / size[:, None])
    a = a / geometric_mean(a)
    return np.asarray((B / a).mean(axis=1)[:, None] * a)


def settled_sizes(size: Floats, n: Floats, d: int, shares: Callable[[Floats], tuple[Floats, float]]) -> Floats:
    r"""Return the volumes :math:`\lambda_k`, up to a factor, that minimise :math:`\sum_k n_k \log \lambda_k +
    \frac{N}{d} \log |S|`, where :math:`S = \sum_k S_k` and :math:`S_k = n_k W_k / \lambda_k`.

    That's what is left of the sum over components when the form that is best for given volumes, S, is put in. Convex
    in logarithms: with :math:`p_k = tr(S^{-1} S_k) / d` the gradient is :math:`n_k - N p_k` and the Hessian :math:`N
    (p_k [k = l] - tr(S^{-1} S_k S^{-1} S_l) / d)`. Newton's steps; where one doesn't lead down, the volumes that are
    best for the form so far, :math:`\lambda_k N p_k / n_k`, do (Celeux & Govaert 1995).

    Parameters
    ----------
    size : ndarray (K,)
        Where to begin.
    n : ndarray (K,)
    d : int
    shares : callable
        ``shares(size)`` are the :math:`S^{-1} S_k`, (K, d, d), or their diagonals (K, d); and :math:`\log |S|`.
    """
    K, N, safe = len(n), float(n.sum()), size
    last, before = np.inf, np.inf
    for _ in range(MOST):
        each, log = shares(size)
        value = float(n @ np.log(size)) + N / d * log
        if size is not safe and not value <= last + ROUNDING * abs(last):
            size = safe
            continue
        p = (np.einsum("kii->k", each) if each.ndim == 3 else each.sum(axis=1)) / d
        if not (np.isfinite(value) and p.min() > 0):
            return np.full(K, np.nan)
        last, last_size, away, safe = value, size, N * p - n, size * N * p / n
        left = float(np.abs(away).max())
        if left <= SETTLED * N or (left <= NOISE * N and left > 0.5 * before):
            return np.asarray(safe)
        before, size = left, safe
        if np.abs(np.log(N * p / n)).max() < FAR:
            step = _newton(each, N * p, away, N / d)
            far = float(np.abs(step).max())
            if far < NEAR:  # what is left is of the order of its square
                return np.asarray(last_size * np.exp(step))
            if far < FAR:
                size = last_size * np.exp(step)
    return np.asarray(safe)


def _newton(each: Floats, rows: Floats, away: Floats, factor: float) -> Floats:
    """Return Newton's step of `settled_sizes`, infinite where the Hessian has no inverse."""
    K, across = len(each), each.swapaxes(1, 2) if each.ndim == 3 else each
    # the same constant everywhere: a factor that all volumes have in common changes nothing
    hessian = rows.sum() / K - factor * (each.reshape(K, -1) @ across.reshape(K, -1).T)
    hessian.ravel()[:: K + 1] += rows
    try:
        return np.linalg.solve(hessian, away)
    except np.linalg.LinAlgError:
        return np.full(K, np.inf)
