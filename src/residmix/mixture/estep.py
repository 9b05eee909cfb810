"""One block of rows through the E-step, straight into the moments that the M-step needs.

Nothing of size rows x components outlives a tile. The scatter is taken about the components' current means, so there's
no cancellation to fear; `residmix.mixture.families` moves it to the new means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.collect import column_pairs
from residmix.kernels.compiled import readable, readable_weight
from residmix.kernels.registers import CHUNK, WIDTH
from residmix.kernels.shares import UNREACHED
from residmix.kernels.tiles import full_block, full_places, scaled_block, scaled_places
from residmix.rows.scratch import scratch

if TYPE_CHECKING:
    from residmix.mixture.given.gate import GateMoments
    from residmix.mixture.params import MixtureParams

__all__ = [
    "MixtureMoments",
    "Problem",
    "log_joint",
    "mixture_block",
    "mixture_block_rows",
    "responsibilities",
]

Floats = NDArray[np.float64]

LOG_2PI = float(np.log(2 * np.pi))

# Columns take all rows of a tile, panels those that belong to a component at all: by the number of columns, the share
# of such rows above which columns are quicker (measured).
DENSE = ((12, -1.0), (24, 0.3), (64, 0.7), (math.inf, 1.0))

# If no weight in a block is above this, they are magnified: shares below `NOTHING` of a row of weight 1 are left out.
TINY_WEIGHT = 1e-6

_NONE = np.empty((0, 0))


@dataclass(slots=True)
class MixtureMoments:
    r"""Responsibility-weighted moments of rows ``[extra, x]`` about the centres ``c_k = [extra_centre, mean_k]``.

    Attributes
    ----------
    weight : ndarray (K,)
        :math:`N_k = \sum_i w_i r_{ik}`.
    shift : ndarray (K, m)
        :math:`\sum_i w_i r_{ik} (row_i - c_k)`, with m = q + d (q = 0 without extra columns).
    scatter : ndarray
        :math:`\sum_i w_i r_{ik} (row_i - c_k)(row_i - c_k)'`: (K, m, m) for full covariances and whenever there are
        extra columns; else its diagonals (K, d) for diagonal families, its sum over k (d, d) for one covariance of all.
    log_likelihood : float
        :math:`\sum_i w_i \log p(x_i)`.
    total : float
        :math:`\sum_i w_i`.
    rows : int
        Rows of positive weight.
    gate : GateMoments or None
    """

    weight: Floats
    shift: Floats
    scatter: Floats
    log_likelihood: float
    total: float
    rows: int
    gate: GateMoments | None = None

    def merge(self, other: MixtureMoments) -> MixtureMoments:
        """Add moments about the same centres, in place."""
        self.weight += other.weight
        self.shift += other.shift
        self.scatter += other.scatter
        self.log_likelihood += other.log_likelihood
        self.total += other.total
        self.rows += other.rows
        if self.gate is not None and other.gate is not None:
            self.gate.merge(other.gate)
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """Parameters as the tile loops want them.

    Attributes
    ----------
    params : MixtureParams
    means : ndarray (K, d)
    factors : ndarray
        Triangles (K, d, d), or scales (K, d) divided by sqrt(2).
    constant : ndarray (K,)
        Logarithm of a component's density at its mean.
    full : bool
        Which of the two `factors` are.
    origin, rotation : ndarray or None
        What rows go through first.
    """

    params: MixtureParams
    means: Floats
    factors: Floats
    constant: Floats
    full: bool
    origin: Floats | None = None
    rotation: Floats | None = None

    @classmethod
    def of(cls, params: MixtureParams, *, full: bool = False) -> Problem:
        """Make parameters ready; with `full` as full covariances, whatever their family."""
        K, d = params.means.shape
        constant = params.log_det - 0.5 * d * LOG_2PI
        if full or not (params.family.diagonal or params.family.shared):
            return cls(params, _plain(params.means), _plain(params.full_factors()), constant, True)
        means, origin, rotation = params.means, None, None
        if params.family.diagonal:
            scales = params.family.diagonals(params.factors)
        else:
            # whitened once, every component is a unit ball; about a point amid the means, lest an offset eat the digits
            origin, rotation = means.mean(axis=0), params.factors
            means, scales = (means - origin) @ rotation, np.ones((1, 1))
        scaled = np.sqrt(0.5) * np.broadcast_to(scales, (K, d))
        return cls(params, _plain(means), _plain(scaled), constant, False, origin, rotation)

    def prepared(self, X: NDArray[np.floating]) -> Floats:
        """Return the rows that `means` and `factors` are about."""
        if self.origin is None or self.rotation is None:
            return _plain(X)
        return (X - self.origin) @ self.rotation

    def prior(self, log_prior: Floats | None) -> tuple[Floats, Floats]:
        """Return what is added to the log-densities: a constant per component, and what each row brings."""
        if log_prior is None:
            return self.constant + self.params.log_weights, _NONE
        return self.constant, _plain(log_prior)


def mixture_block_rows(n_features: int, n_components: int) -> int:
    """Return the block length for a problem: a millisecond of work or a few, whatever the number of threads."""
    work_per_row = n_components * (n_features**2 + 16 * n_features + 64)
    return int(2 ** np.clip(np.round(np.log2(5e5 / np.sqrt(work_per_row))), 10, 15))


def log_joint(X: NDArray[np.floating], params: MixtureParams, *, log_prior: Floats | None = None) -> Floats:
    r"""Return :math:`\log \pi_k + \log N(x_i \mid \mu_k, \Sigma_k)`, shape (b, K).

    Parameters
    ----------
    X : ndarray (b, d)
    params : MixtureParams
    log_prior : ndarray (b, K), optional
        Replaces the log-weights, row by row.
    """
    problem = Problem.of(params)
    rows = problem.prepared(X)
    joint = np.empty((len(rows), params.n_components))
    if problem.full:
        _full_moments(rows, problem.means, problem, log_prior, None, False, joint)
    else:
        _scaled_moments(rows, problem, log_prior, None, joint)
    return joint


def mixture_block(
    X: NDArray[np.floating],
    params: MixtureParams | Problem,
    *,
    log_prior: Floats | None = None,
    weight: Floats | None = None,
    extra: Floats | None = None,
    extra_centre: Floats | None = None,
    with_moments: bool = True,
) -> MixtureMoments:
    """E-step and moments of one block in one pass.

    Parameters
    ----------
    X : ndarray (b, d), float64 or float32
    params : MixtureParams, or Problem
        The latter for many blocks: parameters made ready once, with ``full=True`` if there are extra columns.
    log_prior : ndarray (b, K), optional
        Log-probabilities of the components, row by row; replaces the log-weights.
    weight : ndarray (b,), optional
        Sample weights; rows of weight 0 leave no trace.
    extra : ndarray (b, q), optional
        Columns (a design) that join the scatter but not the density.
    extra_centre : ndarray (q,), optional
        Their centre; 0 by default.
    with_moments : bool
        False spares the work on moments where that saves time (full covariances): only `log_likelihood`, to the same
        bits, `total` and `rows` count.
    """
    problem = params if isinstance(params, Problem) else Problem.of(params, full=extra is not None)
    unit = 1.0 if weight is None else _unit(weight)
    if weight is not None and unit != 1.0:
        weight = weight / unit
    if extra is not None:
        q, means = extra.shape[1], problem.params.means
        centre = np.zeros(q) if extra_centre is None else extra_centre
        centres = np.hstack([np.broadcast_to(centre, (len(means), q)), means])
        moments = _full_moments(np.hstack([extra, X]), centres, problem, log_prior, weight, with_moments)
    elif problem.full:
        moments = _full_moments(X, problem.means, problem, log_prior, weight, with_moments)
    elif problem.rotation is not None:
        moments = _tied_moments(X, problem, log_prior, weight)
    else:
        moments = _scaled_moments(X, problem, log_prior, weight)
    moments.total = float(len(X)) if weight is None else float(weight.sum())
    moments.rows = len(X) if weight is None else int(np.count_nonzero(weight))
    if unit != 1.0:
        for sums in (moments.weight, moments.shift, moments.scatter):
            sums *= unit
        moments.log_likelihood, moments.total = moments.log_likelihood * unit, moments.total * unit
    return moments


def _unit(weight: Floats) -> float:
    """Return a power of 2 near the largest weight if all are tiny, as importance weights may be; else 1."""
    largest = float(weight.max(initial=0.0))
    return 2.0 ** math.frexp(largest)[1] if 0.0 < largest < TINY_WEIGHT else 1.0


def _plain(array: NDArray[np.floating]) -> Floats:
    """Return `array` as the tile loops are compiled for it: float64, C order. A copy only if it isn't."""
    return readable(np.asarray(array, dtype=np.float64))


def tile_rows(n_columns: int, n_components: int) -> int:
    """Return how many rows go through the cache at once: whole chunks, about 48 KB, at most 60 vectors."""
    rows = 6144 // (n_columns + n_components + 4)
    return CHUNK * min(max(rows // CHUNK, 1), 60 * WIDTH // CHUNK)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a loop over tiles does a problem of one size: see `full_block`."""

    tile_rows: int
    places: NDArray[np.int64]
    pairs: NDArray[np.int64] | None = None
    panels: int = 0

    def work(self) -> Floats:
        return scratch((int(self.places[-1]),), np.float64)


@lru_cache(maxsize=32)
def _full_plan(m: int, d: int, K: int, dense: float, with_moments: bool) -> _Plan:
    tile = max(96 // CHUNK * CHUNK, CHUNK) if dense >= 1 else tile_rows(m, K)
    columns = m if with_moments and dense < 1 else 0
    panels = -(-m // WIDTH) if with_moments and dense >= 0 else 0
    return _Plan(tile, full_places(m, d, K, tile, columns, panels), column_pairs(columns), panels)


@lru_cache(maxsize=32)
def _scaled_plan(d: int, K: int) -> _Plan:
    tile = tile_rows(d, K)
    return _Plan(tile, scaled_places(d, K, tile))


def _full_moments(
    rows: NDArray[np.floating],
    centres: Floats,
    problem: Problem,
    log_prior: Floats | None,
    weight: Floats | None,
    with_moments: bool,
    joints: Floats = _NONE,
) -> MixtureMoments:
    K, m = centres.shape
    d = problem.means.shape[1]
    dense = next(share for columns, share in DENSE if m < columns)
    plan = _full_plan(m, d, K, dense, with_moments)
    if plan.panels * WIDTH > m:
        centres = np.hstack([centres, np.zeros((K, plan.panels * WIDTH - m))])
    moments = MixtureMoments(np.zeros(K), np.zeros((K, m)), np.zeros((K, m, m)), 0.0, 0.0, 0)
    moments.log_likelihood = full_block(
        _plain(rows),
        d,
        _plain(centres),
        problem.factors,
        *problem.prior(log_prior),
        readable_weight(weight),
        plan.tile_rows,
        dense,
        plan.places,
        plan.pairs,
        plan.work(),
        moments.weight,
        moments.shift,
        moments.scatter,
        joints,
    )
    return moments


def _scaled_moments(
    rows: NDArray[np.floating],
    problem: Problem,
    log_prior: Floats | None,
    weight: Floats | None,
    joints: Floats = _NONE,
) -> MixtureMoments:
    K, d = problem.means.shape
    plan = _scaled_plan(d, K)
    moments = MixtureMoments(np.zeros(K), np.empty((K, d)), np.empty((K, d)), 0.0, 0.0, 0)
    moments.log_likelihood = scaled_block(
        _plain(rows),
        problem.means,
        problem.factors,
        *problem.prior(log_prior),
        readable_weight(weight),
        plan.tile_rows,
        plan.places,
        plan.work(),
        moments.weight,
        moments.shift,
        moments.scatter,
        joints,
    )
    return moments


def _tied_moments(
    X: NDArray[np.floating], problem: Problem, log_prior: Floats | None, weight: Floats | None
) -> MixtureMoments:
    r"""Pooled scatter in n d (d + 2 K) steps instead of n K d^2, without cancellation.

    With a row's expected mean :math:`\bar\mu_i = \sum_k r_{ik} \mu_k` and :math:`G = R' W R`,

    .. math:: \sum_{ik} w_i r_{ik} (x_i - \mu_k)(x_i - \mu_k)' = \sum_i w_i (x_i - \bar\mu_i)(x_i - \bar\mu_i)'
        + \sum_{k < l} G_{kl} (\mu_k - \mu_l)(\mu_k - \mu_l)',

    because the responsibilities of a row add up to one.
    """
    params, y = problem.params, problem.prepared(X)
    K = params.n_components
    joint = np.empty((len(y), K))
    _scaled_moments(y, problem, log_prior, None, joint)
    shares, log_density = _normalised(joint)
    reached = np.isfinite(log_density)
    if not reached.all():
        # as in the tile loops: a row that no component reaches has no share in any
        X = np.where(reached[:, None], X, params.means.mean(axis=0))
        weight = reached * (1.0 if weight is None else weight)
        log_density = np.where(reached, log_density, UNREACHED)
    if weight is not None:
        log_density = np.where(reached, weight, 1.0) * log_density
    weighted = shares if weight is None else shares * weight[:, None]
    origin = params.means.mean(axis=0)
    x, means = X - origin, params.means - origin
    mass = weighted.sum(axis=0)
    shift = weighted.T @ x - mass[:, None] * means
    rest = x - shares @ means
    scatter = (rest if weight is None else rest * weight[:, None]).T @ rest
    first, second = np.triu_indices(K, 1)
    common = (weighted.T @ shares)[first, second]
    apart = (means[first] - means[second])[common > 0]
    scatter += (apart * common[common > 0, None]).T @ apart
    return MixtureMoments(mass, shift, scatter, float(log_density.sum()), 0.0, 0)


def responsibilities(joint: Floats) -> Floats:
    """Return exp(joint - logsumexp over components), (b, K)."""
    return _normalised(joint)[0]


def _normalised(joint: Floats) -> tuple[Floats, Floats]:
    """Return the responsibilities and the log-density of log p(x, k)."""
    largest = joint.max(axis=1)
    # a row that no component can reach at all (-inf everywhere) is shared evenly
    reached = np.isfinite(largest)
    shifted = np.where(reached[:, None], joint - np.where(reached, largest, 0.0)[:, None], 0.0)
    scaled = np.exp(shifted)
    sums = scaled.sum(axis=1)
    return scaled / sums[:, None], largest + np.log(sums)
