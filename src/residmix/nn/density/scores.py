"""Scores of predictive densities that are mixtures of Gaussians in one dimension: numpy in, numpy out, no torch.

A forecast of n values is three arrays of shape (n, K): weights (rows sum to 1), means and scales (standard
deviations). Every function broadcasts, so (K,) is one density for all values.

References
----------
T. Gneiting, A. Raftery (2007), Strictly proper scoring rules, prediction, and estimation, JASA 102.
E. Grimit et al. (2006), The continuous ranked probability score for circular variables and its application to
mesoscale forecast ensemble verification, QJRMS 132, eq. 5 (CRPS of a mixture of Gaussians).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr, logsumexp, ndtr, ndtri, xlogy

__all__ = [
    "cell_log_score",
    "coverage",
    "crps_mixture",
    "energy_score",
    "interval_score",
    "mixture_cdf",
    "mixture_entropy",
    "mixture_logpdf",
    "mixture_quantile",
    "pinball_loss",
    "pit_mixture",
    "quantile_calibration_error",
    "uniformity",
]

Array = NDArray[np.float64]

_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
# Pairs of components held at once by the closed-form CRPS: (rows x K x K) float64 values, 32 MB.
_PAIRS = 1 << 22


def _broadcast(y: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> tuple[Array, ...]:
    value = np.asarray(y, float)
    arrays = np.broadcast_arrays(
        value[..., None], *(np.asarray(a, float) for a in (weights, means, scales)), subok=False
    )
    return tuple(arrays)


def mixture_logpdf(y: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> Array:
    r""":math:`\log \sum_k w_k N(y | \mu_k, s_k^2)`, by log-sum-exp: finite for any `y`.

    Examples
    --------
    >>> float(mixture_logpdf(0.0, [1.0], [0.0], [1.0]))  # -log(2 pi)/2
    -0.9189385332046727
    """
    value, weight, mean, scale = _broadcast(y, weights, means, scales)
    terms = -0.5 * ((value - mean) / scale) ** 2 - np.log(scale) - _LOG_SQRT_2PI
    return np.asarray(logsumexp(terms, axis=-1, b=weight))


def mixture_cdf(y: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> Array:
    r""":math:`F(y) = \sum_k w_k \Phi((y - \mu_k)/s_k)`.

    Examples
    --------
    >>> round(float(mixture_cdf(1.0, [1.0], [0.0], [1.0])), 4)
    0.8413
    """
    value, weight, mean, scale = _broadcast(y, weights, means, scales)
    return np.asarray(np.clip((weight * ndtr((value - mean) / scale)).sum(-1), 0.0, 1.0))


def mixture_quantile(
    level: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike, *, max_iter: int = 200
) -> Array:
    r"""The y with :math:`F(y) = level`: Newton steps kept inside a bracket that bisection shrinks.

    The quantile of a mixture lies between the smallest and the largest quantile of its components of positive
    weight, which is the first bracket.

    Parameters
    ----------
    level : array_like (...)
        Probabilities strictly between 0 and 1; broadcast against the leading dimensions of the mixture.

    Raises
    ------
    ValueError
        When a level is not inside (0, 1).

    Examples
    --------
    >>> round(float(mixture_quantile(0.975, [1.0], [0.0], [1.0])), 4)
    1.96
    """
    p = np.asarray(level, float)
    if p.size and not ((p > 0) & (p < 1)).all():
        raise ValueError(f"quantile levels must be strictly between 0 and 1, but range from {p.min()} to {p.max()}")
    p_k, weight, mean, scale = _broadcast(p, weights, means, scales)
    p = p_k[..., 0]
    ends = mean + scale * ndtri(p_k)
    held = weight > 0
    low = np.where(held, ends, np.inf).min(-1)
    high = np.where(held, ends, -np.inf).max(-1)
    y = 0.5 * (low + high)
    for _ in range(max_iter):
        z = (y[..., None] - mean) / scale
        gap = (weight * ndtr(z)).sum(-1) - p
        low, high = np.where(gap <= 0, y, low), np.where(gap >= 0, y, high)
        slope = (weight * np.exp(-0.5 * z * z) / scale).sum(-1) / np.sqrt(2 * np.pi)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = y - gap / slope
        inside = (newton > low) & (newton < high)
        new = np.where(inside, newton, 0.5 * (low + high))
        moved = np.abs(new - y)
        y = new
        if (moved <= 4e-16 * np.maximum(np.abs(y), 1e-300) + 1e-14 * scale.min(-1)).all():
            break
    return np.asarray(y)


def _absolute_moment(mean: Array, scale: Array) -> Array:
    r""":math:`E|Z|` for Z ~ N(mean, scale^2)."""
    z = mean / scale
    return np.asarray(mean * (2 * ndtr(z) - 1) + 2 * scale * np.exp(-0.5 * z * z - _LOG_SQRT_2PI))


def crps_mixture(y: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> Array:
    r"""Continuous ranked probability score in closed form, in the units of `y`; lower is better.

    .. math:: CRPS = \sum_i w_i A(y - \mu_i, s_i) - \tfrac12 \sum_{ij} w_i w_j A(\mu_i - \mu_j, \sqrt{s_i^2 + s_j^2})

    with :math:`A(m, s) = E|N(m, s^2)|` (Grimit et al. 2006, eq. 5). Rows are taken in chunks, so the pairs of
    components of a large ensemble are never all in memory.

    Examples
    --------
    >>> round(float(crps_mixture(0.5, [1.0], [0.0], [1.0])), 6)
    0.331404
    >>> round(float(crps_mixture(0.5, [0.5, 0.5], [-5.0, 5.0], [1.0, 1.0])), 6)
    2.217906
    """
    value, weight, mean, scale = _broadcast(y, weights, means, scales)
    shape, K = value.shape[:-1], value.shape[-1]
    value, weight, mean, scale = (a.reshape(-1, K) for a in (value, weight, mean, scale))
    out = np.empty(len(value))
    step = max(1, _PAIRS // (K * K))
    for start in range(0, len(value), step):
        rows = slice(start, start + step)
        w, m, s = weight[rows], mean[rows], scale[rows]
        to_value = (w * _absolute_moment(value[rows] - m, s)).sum(-1)
        spread = np.hypot(s[:, :, None], s[:, None, :])
        pairs = _absolute_moment(m[:, :, None] - m[:, None, :], spread)
        out[rows] = to_value - 0.5 * np.einsum("ni,nij,nj->n", w, pairs, w)
    return out.reshape(shape)


def cell_log_score(y: ArrayLike, weights: ArrayLike, means: ArrayLike, scales: ArrayLike, *, width: float) -> Array:
    r"""Log of the mean density over the grid cell around `y`: :math:`\log \frac{F(y + w/2) - F(y - w/2)}{w}`.

    The log score of a target that is recorded on a grid of step w. As w -> 0 it becomes the log density; unlike the log
    density it can't be inflated by components narrower than the grid.

    Examples
    --------
    >>> spike = dict(weights=[1.0], means=[3.0], scales=[1e-6])
    >>> float(cell_log_score(3.0, **spike, width=1.0))  # all mass in the cell: log 1
    0.0
    """
    value, weight, mean, scale = _broadcast(y, weights, means, scales)
    upper, lower = (value + 0.5 * width - mean) / scale, (value - 0.5 * width - mean) / scale
    # Both ends on the negative side, where log Phi keeps its digits.
    flip = upper + lower > 0
    a, b = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    log_b = log_ndtr(b)
    with np.errstate(divide="ignore"):
        inside = log_b + np.log(-np.expm1(np.minimum(log_ndtr(a) - log_b, 0.0)))
    return np.asarray(logsumexp(inside, axis=-1, b=weight) - np.log(width))


def mixture_entropy(weights: ArrayLike, means: ArrayLike, scales: ArrayLike) -> Array:
    r"""Differential entropy :math:`-\int p \log p` in nats, to 1e-6, by Gauss-Legendre quadrature.

    The pieces end at every component's mean and 4 and 8 of its standard deviations away from it, so that a narrow
    component isn't passed over between the nodes of a wide one.

    Examples
    --------
    >>> round(float(mixture_entropy([1.0], [0.0], [1.0])), 6)  # (1 + log 2 pi)/2
    1.418939
    """
    nodes, masses = np.polynomial.legendre.leggauss(10)
    weight, mean, scale = np.broadcast_arrays(*(np.asarray(a, float) for a in (weights, means, scales)))
    shape, K = weight.shape[:-1], weight.shape[-1]
    weight, mean, scale = (part.reshape(-1, K) for part in (weight, mean, scale))
    out = np.zeros(len(weight))
    step = max(1, _PAIRS // (5 * K * K))
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        w, m, s = weight[rows], mean[rows], scale[rows]
        ends = np.sort((m[..., None] + s[..., None] * np.linspace(-8, 8, 5)).reshape(len(w), -1), axis=-1)
        half, middle = 0.5 * np.diff(ends), 0.5 * (ends[:, 1:] + ends[:, :-1])
        height = w / (s * np.sqrt(2 * np.pi))
        for node, mass in zip(nodes, masses, strict=True):
            z = ((middle + node * half)[..., None] - m[:, None]) / s[:, None]
            density = np.einsum("npk,nk->np", np.exp(-0.5 * z * z), height)
            out[rows] -= mass * (half * xlogy(density, density)).sum(-1)
    return out.reshape(shape)


def pit_mixture(
    y: ArrayLike,
    weights: ArrayLike,
    means: ArrayLike,
    scales: ArrayLike,
    *,
    width: ArrayLike | None = None,
    random_state: int | np.random.Generator | None = None,
) -> Array:
    """Probability integral transform F(y): uniform on (0, 1) if the densities are calibrated.

    With `width`, the step(s) of the grid `y` is recorded on, the randomised transform: uniform between
    F(y - width/2) and F(y + width/2).

    Examples
    --------
    >>> float(pit_mixture(0.0, [1.0], [0.0], [1.0]))
    0.5
    """
    if width is None:
        return mixture_cdf(y, weights, means, scales)
    value, half = np.asarray(y, float), 0.5 * np.asarray(width, float)
    low = mixture_cdf(value - half, weights, means, scales)
    high = mixture_cdf(value + half, weights, means, scales)
    return low + (high - low) * np.random.default_rng(random_state).random(low.shape)


def uniformity(pit: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance between PIT values and the uniform distribution: 0 is calibrated, 1 the worst.

    Examples
    --------
    >>> round(uniformity([0.125, 0.375, 0.625, 0.875]), 3)
    0.125
    """
    u = np.sort(np.asarray(pit, float).ravel())
    n = len(u)
    grid = np.arange(n + 1) / n
    return float(max((grid[1:] - u).max(), (u - grid[:-1]).max()))


def quantile_calibration_error(pit: ArrayLike, *, levels: int = 99) -> float:
    """Root mean square of (share of PIT values <= p) - p over a grid of p (Kuleshov et al. 2018, eq. 9, rooted).

    Examples
    --------
    >>> quantile_calibration_error([0.0] * 10, levels=1)
    0.5
    """
    u = np.sort(np.asarray(pit, float).ravel())
    p = np.arange(1, levels + 1) / (levels + 1)
    share = np.searchsorted(u, p, side="right") / len(u)
    return float(np.sqrt(np.mean((share - p) ** 2)))


def coverage(y: ArrayLike, interval: ArrayLike) -> float:
    """Share of `y` inside `interval` (n, 2), ends included.

    Examples
    --------
    >>> coverage([0.0, 3.0], [[-1.0, 1.0], [-1.0, 1.0]])
    0.5
    """
    value, ends = np.asarray(y, float), np.asarray(interval, float)
    return float(np.mean((value >= ends[..., 0]) & (value <= ends[..., 1])))


def interval_score(y: ArrayLike, interval: ArrayLike, *, level: float = 0.9) -> Array:
    """Winkler's score of a central `level` interval: width + 2/(1 - level) x distance outside; lower is better.

    Examples
    --------
    >>> float(interval_score(2.0, [-1.0, 1.0], level=0.5))  # width 2, 1 outside
    6.0
    """
    value, ends = np.asarray(y, float), np.asarray(interval, float)
    low, high = ends[..., 0], ends[..., 1]
    outside = np.maximum(low - value, 0.0) + np.maximum(value - high, 0.0)
    return np.asarray(high - low + 2.0 / (1.0 - level) * outside)


def pinball_loss(y: ArrayLike, quantile: ArrayLike, *, level: float) -> Array:
    """Quantile score: level x (y - q) above the quantile, (1 - level) x (q - y) below; lower is better.

    Examples
    --------
    >>> float(pinball_loss(2.0, 1.0, level=0.9))
    0.9
    """
    gap = np.asarray(y, float) - np.asarray(quantile, float)
    return np.asarray(np.maximum(level * gap, (level - 1.0) * gap))


def energy_score(y: ArrayLike, samples: ArrayLike) -> Array:
    r"""Energy score of vector targets from draws; in one dimension its expectation is the CRPS.

    .. math:: \frac1S \sum_s |x_s - y| - \frac1{S(S-1)} \sum_{s<t} |x_s - x_t|

    The unbiased form.

    Parameters
    ----------
    y : array_like (n, D)
    samples : array_like (S, n, D)
        At least two draws per row.

    Examples
    --------
    >>> float(energy_score([[0.0]], [[[1.0]], [[3.0]]])[0])  # (1 + 3)/2 - 2/2
    1.0
    """
    value, draws = np.asarray(y, float), np.asarray(samples, float)
    S = len(draws)
    if S < 2:
        raise ValueError(f"the energy score needs at least 2 draws per row, got {S}")
    to_value = np.linalg.norm(draws - value, axis=-1).mean(0)
    between = np.zeros(draws.shape[1])
    for s in range(S - 1):
        between += np.linalg.norm(draws[s + 1 :] - draws[s], axis=-1).sum(0)
    return np.asarray(to_value - between / (S * (S - 1)))
