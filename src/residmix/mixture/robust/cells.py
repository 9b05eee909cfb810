r"""Values that are wrong amid a row that is right: those that cost the likelihood more than setting them aside does.

Of row i the values :math:`o_i` are believed and the others count as missing, at the price of :math:`q_j / 2` for a
value of feature j. The objective is

.. math:: \sum_i w_i \Bigl[ \log \sum_k \pi_k N(x_{i o_i} \mid \mu_{k o_i}, \Sigma_{k o_i o_i})
    - \tfrac12 \sum_{j \notin o_i} q_j \Bigr],

so a value is set aside where :math:`\log p(x_{ij} \mid x_{i o_i \setminus j}) < -q_j / 2` (the cellwise MCD of
Raymaekers & Rousseeuw 2023, "The cellwise minimum covariance determinant estimator", JASA 119, for one component;
Zaccaria, Garcia-Escudero, Greselin & Mayo-Iscar 2024, "Cellwise outlier detection in heterogeneous populations", for
mixtures). :math:`\exp(-q_j / 2)` is the density that a wrong value has, wherever it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from residmix.mixture.iteration.estep import LOG_2PI, normalised
from residmix.mixture.params import MixtureParams
from residmix.mixture.robust.gaps import CACHED, by_patterns, inverse_roots, patterns, times

__all__ = ["FEW", "LEVEL", "believed", "beyond", "penalties_of", "set_aside"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Share of the right values that are set aside: those of a normal distribution beyond three standard deviations.
LEVEL = 0.0027
# The same while a fit is looked for: the share of Raymaekers & Rousseeuw, which keeps wrong values farther away.
FEW = 0.01
# Halvings of the interval in which a penalty lies.
HALVINGS = 60
# What a change must gain, lest rounding decide.
LEAST = 1e-9
# Values this many times a feature's spread away from a component are as good as infinitely far.
FARTHEST = 1e60


def beyond(variance: Floats, level: float = LEVEL) -> Floats:
    """Return the penalties at which a share of the values of normal features of these variances is set aside."""
    return np.asarray(chi2.isf(level, 1) + LOG_2PI + np.log(variance))


def _left(share: float) -> float:
    """Return the variance of a standard normal distribution without its outer share."""
    cut = np.sqrt(chi2.isf(share, 1))
    return float(chi2.cdf(cut**2, 3) / (1 - share))


def penalties_of(params: MixtureParams) -> Floats:
    r"""Return the penalties (d,) at which a share `LEVEL` of the values of a mixture is set aside.

    With :math:`C_{kj}` the variance of feature j given the others in component k, it's the root of

    .. math:: \sum_k \pi_k \Pr[\chi^2_1 > q_j - \log 2 \pi C_{kj}] = LEVEL,

    which is exact where a row's other values tell its component. The mixture is one that was fitted without the share
    `FEW`: what is left of a normal distribution has less variance.
    """
    factors = params.full_factors()
    variance = 1.0 / np.einsum("kij,kij->ki", factors, factors) / _left(FEW)
    own = beyond(variance)
    low, high = own.min(axis=0), own.max(axis=0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = params.weights @ chi2.sf(middle - LOG_2PI - np.log(variance), 1) > LEVEL
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2)


def set_aside(
    params: MixtureParams, x: Floats, penalties: Floats, log_prior: Floats, before: Bools | None = None
) -> tuple[Bools, Floats]:
    """Return which values (b, d) are set aside, and what each row then adds to the objective, (b,).

    Row by row the one change that gains most is made, until none gains: from nothing set aside, and from what each
    component by itself finds too far out; and, if given, from `before`. The best of these is kept, so no row ever falls
    below what it has with `before`.

    Parameters
    ----------
    params : MixtureParams
    x : ndarray (b, d)
        NaN is missing anyway.
    penalties : ndarray (d,)
    log_prior : ndarray (K,) or (b, K)
    before : ndarray of bool (b, d), optional
    """
    x = _bounded(params, x)
    search = _Search(params, x, penalties, np.broadcast_to(log_prior, (len(x), params.n_components)))
    begun = np.zeros(x.shape, dtype=bool) if before is None else before
    flags, value = search.run(begun, np.arange(len(x)))
    touched = np.flatnonzero(flags.any(axis=1) | begun.any(axis=1))
    for other in search.proposals(touched):
        found, reached = search.run(other, touched)
        better = reached > value[touched] + LEAST
        rows = touched[better]
        flags[rows], value[rows] = found[better], reached[better]
    return flags, value


def believed(params: MixtureParams, x: Floats, log_prior: Floats) -> tuple[Floats, Floats]:
    """Return rows (b, d) with NaN for values that are set aside, and what these cost (b,)."""
    assert params.cells is not None
    flags, _ = set_aside(params, x, params.cells, log_prior)
    return np.where(flags, np.nan, x), flags @ params.cells / 2


def _bounded(params: MixtureParams, x: Floats) -> Floats:
    """Return rows whose squares don't overflow."""
    spread = np.sqrt(np.diagonal(params.full_covariances(), axis1=1, axis2=2)).max(axis=0)
    centre = params.means.mean(axis=0)
    return np.clip(x, centre - FARTHEST * spread, centre + FARTHEST * spread)


class _Search:
    """Sets of values that are set aside, and what they are worth."""

    def __init__(self, params: MixtureParams, x: Floats, penalties: Floats, log_prior: Floats) -> None:
        self.params, self.x, self.half, self.log_prior = params, x, penalties / 2, log_prior
        self.full = params.full_covariances()

    def proposals(self, rows: NDArray[np.intp]) -> list[Bools]:
        """Return the values (b, d) to set aside to begin with: none, and those far from each component's mean."""
        found = [np.zeros((len(rows), self.x.shape[1]), dtype=bool)]
        for mean, matrix in zip(self.params.means, self.full, strict=True):
            found.append((self.x[rows] - mean) ** 2 > chi2.isf(LEVEL, 1) * np.diagonal(matrix))
        return found

    def run(self, flags: Bools, rows: NDArray[np.intp]) -> tuple[Bools, Floats]:
        """Return where single changes lead from `flags` (b, d) in these rows, and what that is worth (b,)."""
        flags = flags.copy()
        value, gain = self.judged(rows, flags)
        active = np.flatnonzero(gain.max(axis=1) > LEAST)
        while active.size:
            trial = flags[active]
            at = np.arange(len(active)), gain[active].argmax(axis=1)
            trial[at] = ~trial[at]
            reached, following = self.judged(rows[active], trial)
            better = reached > value[active]
            flags[active[better]], value[active[better]] = trial[better], reached[better]
            gain[active[better]] = following[better]
            active = active[better]
            active = active[gain[active].max(axis=1) > LEAST]
        return flags, value

    def judged(self, rows: NDArray[np.intp], flags: Bools) -> tuple[Floats, Floats]:
        """Return what rows are worth (b,), and what changing each value would gain (b, d)."""
        x, K = self.x[rows], self.params.n_components
        believed = np.where(flags, np.nan, x)
        value, gain = np.empty(len(x)), np.empty(x.shape)
        for part in by_patterns(believed, K):
            joint, alone = self._densities(x[part], believed[part])
            joint = joint + self.log_prior[rows][part]
            base = normalised(joint)[1]
            sign = np.where(np.isnan(believed[part]), 1.0, -1.0)
            with np.errstate(invalid="ignore"):
                moved = joint[:, :, None] + sign[:, None] * alone
                largest = moved.max(axis=1)
                changed = largest + np.log(np.exp(moved - largest[:, None]).sum(axis=1))
                gain[part] = changed - base[:, None] + sign * self.half
            value[part] = base - flags[part] @ self.half
        gain[np.isnan(x)] = -np.inf
        return value, gain

    def _densities(self, x: Floats, believed: Floats) -> tuple[Floats, Floats]:
        """Return the components' log-densities (b, K) of what is believed, and those of each value given the others
        that are (b, K, d).
        """
        (K, d), there_of = self.params.means.shape, np.isnan(believed)
        there, which = patterns(believed)
        order, ends = np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))
        joint, alone = np.empty((len(x), K)), np.empty((len(x), K, d))
        step = max(1, CACHED // (K * d * d))
        for start in range(0, len(there), step):
            own = slice(start, start + step)
            seen = there[own, None]
            inverse = inverse_roots(np.where(seen[..., None] & seen[:, :, None], self.full, np.eye(d)))
            across = np.where(seen[..., None] & ~seen[:, :, None], self.full, 0.0)
            gain = inverse.swapaxes(2, 3) @ across
            precision = np.einsum("pkij,pkij->pki", inverse, inverse)
            rest = np.diagonal(self.full, axis1=1, axis2=2) - np.einsum("pkij,pkij->pkj", gain, gain)
            variance = np.where(seen, 1.0 / precision, rest)
            rows = order[ends[start - 1] if start else 0 : ends[own][-1]]
            at = which[rows] - start
            away = x[rows, None] - self.params.means
            known = np.where(there_of[rows, None], 0.0, away)
            white = times(known, inverse, at)
            size = there[own].sum(axis=1)[at, None]
            log_det = np.log(np.diagonal(inverse, axis1=2, axis2=3)).sum(axis=2)[at]
            joint[rows] = log_det - (size * LOG_2PI + np.einsum("bki,bki->bk", white, white)) / 2
            pulled = times(white, inverse.swapaxes(2, 3), at) * variance[at]
            residual = np.where(there_of[rows, None], away - times(white, gain, at), pulled)
            alone[rows] = -(LOG_2PI + np.log(variance[at]) + residual**2 / variance[at]) / 2
        return joint, alone
