"""One block of rows through the E-step, straight into the moments that the M-step needs.

No array of size rows x components is kept beyond a tile. The scatter is about the components' current means, which
avoids cancellation; `residmix.mixture.families` moves it to the new means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.arrays import readable, readable_weight
from residmix.kernels.cholesky import inverse_triangles
from residmix.kernels.pairs import full_joint, full_sums, scaled_joint, scaled_sums, single_sums, small, tied_gram
from residmix.mixture.given.by_component import joined_factors, joined_means, steep
from residmix.mixture.given.by_group import at_group

if TYPE_CHECKING:
    from residmix.mixture.given.gate import GateMoments
    from residmix.mixture.params import MixtureParams
    from residmix.mixture.robust.tails import TailMoments

__all__ = [
    "MixtureMoments",
    "Problem",
    "log_joint",
    "mixture_block",
    "mixture_block_rows",
    "normalised",
    "responsibilities",
]

Floats = NDArray[np.float64]

LOG_2PI = float(np.log(2 * np.pi))

# If no weight in a block is above this, they are magnified: shares below `NOTHING` of a row of weight 1 are left out.
TINY_WEIGHT = 1e-6

# Products of rows of float32 are taken in single precision from so many columns, where that begins to pay; if factors
# times standard deviations are below the second, and factors and distances, up or down, within the third.
SINGLE_FROM = 8
STEEPEST = 100.0
SINGLE_MOST = 1e18

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
        extra columns; else its diagonals (K, d) for diagonal families, of which no more than the sums count where
        features have one variance; its sum over k (d, d) for one covariance of all.
    log_likelihood : float
        :math:`\sum_i w_i \log p(x_i)`.
    total : float
        :math:`\sum_i w_i`.
    rows : int
        Rows of positive weight.
    gate : GateMoments or None
    tails : TailMoments or None
    """

    weight: Floats
    shift: Floats
    scatter: Floats
    log_likelihood: float
    total: float
    rows: int
    gate: GateMoments | None = None
    tails: TailMoments | None = None

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
        if self.tails is not None and other.tails is not None:
            self.tails.merge(other.tails)
        return self


@dataclass(frozen=True, slots=True)
class Problem:
    """Parameters in the form that the tile loops need.

    Attributes
    ----------
    params : MixtureParams
    means : ndarray (K, d)
    factors : ndarray
        Triangles (K, d, d), or scales (K, d) divided by sqrt(2), (K, 1) if all features have the same.
    constant : ndarray (K,)
        Logarithm of a component's density at its mean.
    weighted : ndarray (K,)
        The same with the component's weight.
    full : bool
        Which of the two `factors` are.
    origin, rotation : ndarray or None
        Transformation of the rows before the loops.
    plain : bool
        Whether numpy is used instead of the compiled loops, see `residmix.kernels.pairs.small`.
    runs : int
        How many mixtures the components are of, as many of each: see `residmix.mixture.iteration.short`. The
        log-likelihood is an array where there are several.
    steep : bool
        Whether rows must be taken less each component's own effect: see `residmix.mixture.given.by_component`. If
        effects are by component, `means` and `factors` are those of the row [u, x].
    groups : tuple of Problem
        Of each group of rows, where covariances differ by group: see `residmix.mixture.given.by_group`.
    single : float
        Products of float32 rows up to this size are taken in single precision.
    """

    params: MixtureParams
    means: Floats
    factors: Floats
    constant: Floats
    full: bool
    origin: Floats | None = None
    rotation: Floats | None = None
    plain: bool = False
    runs: int = 1
    steep: bool = False
    groups: tuple[Problem, ...] = ()
    single: float = 0.0
    weighted: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weighted", self.constant + self.params.log_weights)

    @classmethod
    def of(
        cls,
        params: MixtureParams,
        *,
        full: bool = False,
        n_rows: int | None = None,
        runs: int = 1,
        single: bool = False,
    ) -> Problem:
        """Prepare parameters for a total number of rows; with `full`, as full covariances.

        With `single`, products of rows of float32 may be taken in single precision.

        The number of rows of a fit decides, with its shape, whether loops or their twins run; unknown is many.
        """
        K, d = params.means.shape
        if params.by_group is not None:
            # rows aren't taken less steep effects there: digits of what is left are lost, not of the density
            parts = [at_group(params, g) for g in range(params.by_group.n_groups)]
            groups = tuple(replace(cls.of(part, full=full, n_rows=n_rows), steep=False) for part in parts)
            return replace(groups[0], params=params, groups=groups)
        constant, plain = params.log_det - 0.5 * d * LOG_2PI, small(n_rows, K // runs * d)
        if params.by_component:
            joined = _plain(joined_means(params)), _plain(joined_factors(params))
            return cls(params, *joined, constant, True, plain=plain, steep=steep(params))
        if full or not (params.family.diagonal or (params.family.shared and _pooling_pays(K, d))):
            single_to = _single_to(params) if single and not (full or plain or runs > 1) else 0.0
            made = _plain(params.means), _plain(params.full_factors())
            return cls(params, *made, constant, True, plain=plain, runs=runs, single=single_to)
        means, origin, rotation = params.means, None, None
        if params.family.diagonal:
            width = 1 if params.family.isotropic else d
            scaled = np.sqrt(0.5) * np.broadcast_to(params.family.diagonals(params.factors)[:, :width], (K, width))
        else:
            # whitened once, every component is a unit ball; about a point amid the means, lest an offset eat the
            # digits. Over sqrt(2), so that a squared distance is half of what it was.
            origin, rotation = means.mean(axis=0), np.sqrt(0.5) * params.factors
            means, scaled = (means - origin) @ rotation, np.ones((K, 1))
        return cls(params, _plain(means), _plain(scaled), constant, False, origin, rotation, plain, runs)

    def prepared(self, X: NDArray[np.floating]) -> Floats:
        """Return the rows that `means` and `factors` are about."""
        if self.origin is None or self.rotation is None:
            return _plain(X)
        return (X - self.origin) @ self.rotation

    def prior(self, log_prior: Floats | None) -> tuple[Floats, Floats]:
        """Return what is added to the log-densities: a constant per component, and what each row brings."""
        if log_prior is None:
            return self.weighted, _NONE
        return self.constant, _plain(log_prior)


def _single_to(params: MixtureParams) -> float:
    r"""Return up to which size rows' products may be taken in single precision; 0 if that costs too many digits.

    A covariance comes out with errors of :math:`10^{-8}` or so of its features' variances. So these mustn't be more
    than `STEEPEST` squared times what is left of them given the other features; and squares must not overflow.
    """
    d, factors = params.n_features, np.abs(params.full_factors())
    if d < SINGLE_FROM:
        return 0.0
    deviations = np.sqrt(np.diagonal(params.full_covariances(), axis1=1, axis2=2))
    least, most = np.diagonal(factors, axis1=1, axis2=2).min(), factors.max()
    if not ((factors * deviations[:, :, None]).max() < STEEPEST and least > 1 / SINGLE_MOST and most < SINGLE_MOST):
        return 0.0
    return float(SINGLE_MOST / (d * most) - np.abs(params.means).max())


def _pooling_pays(K: int, d: int) -> bool:
    """Tell whether one pooled scatter takes less time than one of each component, which serve the family as well.

    Operations a row; those of the pooled one, of which fewer are alike, take 1.8 times as long (measured at
    K, d = 8, 8; 16, 32; 5, 4).
    """
    return 1.8 * (d * (d + 1) / 2 + 3 * K * d + (K + d) * (K + d + 1) / 2) < K * (d * (d + 1) + d)


def mixture_block_rows(n_features: int, n_components: int) -> int:
    """Return the block length for a problem: a millisecond of work or a few, whatever the number of threads."""
    work_per_row = n_components * (n_features**2 + 16 * n_features + 64)
    return int(2 ** np.clip(np.round(np.log2(5e5 / np.sqrt(work_per_row))), 10, 15))


def log_joint(X: NDArray[np.floating], params: MixtureParams | Problem, *, log_prior: Floats | None = None) -> Floats:
    r"""Return :math:`\log \pi_k + \log N(x_i \mid \mu_k, \Sigma_k)`, shape (b, K).

    Parameters
    ----------
    X : ndarray (b, d)
    params : MixtureParams, or Problem
        The latter for many blocks.
    log_prior : ndarray (b, K), optional
        Replaces the log-weights, row by row.
    """
    problem = params if isinstance(params, Problem) else Problem.of(params)
    loop: Any = full_joint if problem.full else scaled_joint
    return np.asarray(
        loop(problem.prepared(X), problem.means, problem.factors, *problem.prior(log_prior), plain=problem.plain)
    )


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
    w = readable_weight(weight)
    if problem.rotation is not None:
        moments = _tied_moments(X, problem, log_prior, w)
    else:
        moments = _own_moments(X, problem, log_prior, w, extra, extra_centre, with_moments)
    moments.total = float(len(X)) if weight is None else float(weight.sum())
    moments.rows = len(X) if weight is None else int(np.count_nonzero(weight))
    if unit != 1.0:
        for sums in (moments.weight, moments.shift, moments.scatter):
            sums *= unit
        moments.log_likelihood, moments.total = moments.log_likelihood * unit, moments.total * unit
    return moments


def _own_moments(
    X: NDArray[np.floating],
    problem: Problem,
    log_prior: Floats | None,
    weight: Floats,
    extra: Floats | None,
    extra_centre: Floats | None,
    with_moments: bool,
) -> MixtureMoments:
    """Return the moments where each component has its own scatter."""
    rows, centres, prior = X, problem.means, problem.prior(log_prior)
    if extra is not None:
        q = extra.shape[1]
        centre = np.zeros(q) if extra_centre is None else extra_centre
        centres = np.hstack([np.broadcast_to(centre, (len(centres), q)), centres])
        rows = np.hstack([extra, X])
    if extra is None and X.dtype == np.float32 and problem.single > 0 and _all_below(X, problem.single):
        given: Any = readable(X), centres, problem.factors, *prior, weight, with_moments
        log_likelihood, mass, shift, scatter = single_sums(*given)
    elif problem.full:
        given = _plain(rows), X.shape[1], centres, problem.factors, *prior, weight, with_moments, problem.runs
        log_likelihood, mass, shift, scatter = full_sums(*given, plain=problem.plain)
        of = problem.params.family
        if extra is None and of.shared and not of.diagonal and not problem.params.by_component:
            scatter = scatter.sum(axis=0)
    else:
        given = _plain(rows), centres, problem.factors, *prior, weight, with_moments, problem.runs
        log_likelihood, mass, shift, scatter = scaled_sums(*given, plain=problem.plain)
    return MixtureMoments(mass, shift, scatter, log_likelihood, 0.0, 0)


def _all_below(X: NDArray[np.floating], most: float) -> bool:
    return bool(X.size and X.max() < most and X.min() > -most)


def _unit(weight: Floats) -> float:
    """Return a power of 2 near the largest weight if all are tiny, as importance weights may be; else 1."""
    largest = float(weight.max(initial=0.0))
    return 2.0 ** math.frexp(largest)[1] if 0.0 < largest < TINY_WEIGHT else 1.0


def _plain(array: NDArray[np.floating]) -> Floats:
    """Return `array` as the tile loops are compiled for it: float64, C order. A copy only if it isn't."""
    return readable(np.asarray(array, dtype=np.float64))


def _tied_moments(
    X: NDArray[np.floating], problem: Problem, log_prior: Floats | None, weight: Floats
) -> MixtureMoments:
    r"""Pooled scatter in n d (d + 2 K) / 2 steps instead of n K d^2, without cancellation.

    With a row's expected mean :math:`\bar\mu_i = \sum_k r_{ik} \mu_k` and :math:`G = R' W R`,

    .. math:: \sum_{ik} w_i r_{ik} (x_i - \mu_k)(x_i - \mu_k)' = \sum_i w_i (x_i - \bar\mu_i)(x_i - \bar\mu_i)'
        + \frac12 \sum_{kl} G_{kl} (\mu_k - \mu_l)(\mu_k - \mu_l)',

    because the responsibilities of a row add up to one. All of it is taken of whitened rows, and moved back.
    """
    K, means = len(problem.means), problem.means
    assert problem.origin is not None and problem.rotation is not None
    log_likelihood, gram = tied_gram(
        _plain(X), problem.origin, problem.rotation, means, *problem.prior(log_prior), weight, plain=problem.plain
    )
    common, rest = gram[:K, :K], gram[:K, K:]
    mass = common.sum(axis=1)
    shift = rest + np.einsum("kl,klj->kj", common, means - means[:, None])
    first, second = np.triu_indices(K, 1)
    apart = (means[first] - means[second]) * np.sqrt(common[first, second])[:, None]
    back = inverse_triangles(problem.rotation[None])[0]
    scatter = back.T @ (gram[K:, K:] + apart.T @ apart) @ back
    return MixtureMoments(mass, shift @ back, scatter, log_likelihood, 0.0, 0)


def responsibilities(joint: Floats) -> Floats:
    """Return exp(joint - logsumexp over components), (b, K)."""
    return normalised(joint)[0]


def normalised(joint: Floats) -> tuple[Floats, Floats]:
    """Return the responsibilities (b, K) and the log-density (b,) of log p(x, k), -inf where no component reaches."""
    largest = joint.max(axis=1)
    # a row that no component can reach at all (-inf everywhere) is shared evenly
    reached = np.isfinite(largest)
    shifted = np.where(reached[:, None], joint - np.where(reached, largest, 0.0)[:, None], 0.0)
    scaled = np.exp(shifted)
    sums = scaled.sum(axis=1)
    return scaled / sums[:, None], largest + np.log(sums)
