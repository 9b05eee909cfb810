r"""Rows with missing values: densities of observed values and expectations of missing ones, by pattern.

Of component k the values that are there have the density :math:`N(x_o \mid \mu_{ko}, \Sigma_{koo})`, and the others
the mean :math:`\mu_{km} + B_k (x_o - \mu_{ko})` with :math:`B_k = \Sigma_{kmo} \Sigma_{koo}^{-1}`, and the covariance
:math:`\Sigma_{kmm} - B_k \Sigma_{kom}` (Ghahramani & Jordan 1994, "Supervised learning from incomplete data via an EM
approach"; Little & Rubin 2002). This is exact maximum likelihood where values are missing at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.cholesky import many_inverse_cholesky
from residmix.mixture.params import MixtureParams, make_params
from residmix.rows.block import Block
from residmix.rows.rows import Rows

__all__ = [
    "CACHED",
    "Gaps",
    "by_patterns",
    "gaps_of",
    "inverse_roots",
    "patterns",
    "single_normal",
    "times",
    "without_gaps",
]

Floats = NDArray[np.float64]

# Numbers of the covariances given what is there, patterns times components: held for a part of the rows, and worked on
# at once, so that they stay in the processor's cache.
CHUNK = 4_000_000
CACHED = 1 << 16
# Rows of a pattern from which on a product of matrices of their own pays.
MANY = 8


@dataclass(frozen=True, slots=True)
class Gaps:
    """What components say to rows with missing values.

    Attributes
    ----------
    which : ndarray of int (b,)
        Pattern of each row.
    log_det : ndarray (b, K)
        Minus half the logarithm of the determinant of the covariance of what is there.
    distance : ndarray (b, K)
        Squared distance of what is there.
    away : ndarray (b, K, d)
        Rows less the component's mean, missing values as it expects them; empty unless asked for.
    rest : ndarray (P, K, d, d)
        Covariances of the missing values given the others, 0 elsewhere; empty unless asked for.
    """

    which: NDArray[np.intp]
    log_det: Floats
    distance: Floats
    away: Floats
    rest: Floats

    def unknown(self, share: Floats, k: int) -> Floats:
        """Return the sum over rows of the covariance (d, d) of what is missing, each row with its share (b,)."""
        mass = np.bincount(self.which, share, len(self.rest))
        return np.asarray(np.tensordot(mass, self.rest[:, k], 1))


def gaps_of(params: MixtureParams, x: Floats, effects: Floats | None = None, *, fill: bool = True) -> Gaps:
    """Return what components say to rows (b, d), `effects` (K, b, d) taken from the rows first if given.

    Without `fill` missing values aren't expected. Patterns are worked on many at once: a feature that isn't there is as
    if independent of the others, of variance 1, and seen where it is expected.
    """
    (K, d), full = params.means.shape, params.full_covariances()
    there, which = patterns(x)
    order, ends = np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))
    log_det, distance = np.empty((len(there), K)), np.empty((len(x), K))
    filled, rest = np.empty((len(x) if fill else 0, K, d)), np.empty((len(there) if fill else 0, K, d, d))
    step = max(1, CACHED // (K * d * d))
    for start in range(0, len(there), step):
        own = slice(start, start + step)
        seen = there[own, None]
        inverse = inverse_roots(np.where(seen[..., None] & seen[:, :, None], full, np.eye(d)))
        log_det[own] = np.log(np.diagonal(inverse, axis1=2, axis2=3)).sum(axis=2)
        rows = order[ends[start - 1] if start else 0 : ends[own][-1]]
        at = which[rows] - start
        away = x[rows, None] - params.means
        away = np.where(np.isnan(away), 0.0, away if effects is None else away - effects[:, rows].swapaxes(0, 1))
        white = times(away, inverse, at)
        distance[rows] = np.einsum("bki,bki->bk", white, white)
        if fill:
            gain = inverse.swapaxes(2, 3) @ np.where(seen[..., None] & ~seen[:, :, None], full, 0.0)
            filled[rows] = away + times(away, inverse @ gain, at)
            rest[own] = np.where(seen[..., None] | seen[:, :, None], 0.0, full) - gain.swapaxes(2, 3) @ gain
    return Gaps(which, log_det[which], distance, filled, rest)


def inverse_roots(matrices: Floats) -> Floats:
    """Return inv(L)' for each matrix L L' of a stack (P, K, d, d)."""
    inverse, failed = many_inverse_cholesky(matrices.reshape(-1, *matrices.shape[2:]))
    if failed.any():
        raise np.linalg.LinAlgError("a covariance of the features that are there is not positive definite")
    return inverse.reshape(matrices.shape)


def by_patterns(x: NDArray[np.floating], n_components: int) -> Iterator[NDArray[np.intp] | slice]:
    """Return the rows (b, d) in parts of few patterns, so that what is held of a part is of bounded size."""
    there, which = patterns(x)
    step = max(1, CHUNK // (n_components * x.shape[1] ** 2))
    if step >= len(there):
        yield slice(0, len(x))
        return
    for start in range(0, len(there), step):
        yield np.flatnonzero((which >= start) & (which < start + step))


def patterns(x: NDArray[np.floating]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return which features are there, each pattern once (P, d), and the pattern of each row (b,)."""
    there = ~np.isnan(x)
    bits = np.packbits(there, axis=1)
    words = np.zeros((len(x), -(-bits.shape[1] // 8) * 8), dtype=np.uint8)
    words[:, : bits.shape[1]] = bits
    keys = words.view(np.uint64)
    one = keys[:, 0] if keys.shape[1] == 1 else words.view(np.dtype((np.void, words.shape[1])))[:, 0]
    _, first, which = np.unique(one, return_index=True, return_inverse=True)
    return there[first], which.ravel()


def times(rows: Floats, matrices: Floats, which: NDArray[np.intp]) -> Floats:
    """Return each row (b, K, d) times the matrices (P, K, d, d) of its pattern; rows in the order of patterns."""
    if len(rows) < MANY * len(matrices):
        return np.asarray((rows[:, :, None] @ matrices[which])[:, :, 0])
    found, low = np.empty(rows.shape), 0
    for matrix, count in zip(matrices, np.bincount(which, minlength=len(matrices)).tolist(), strict=True):
        own = slice(low, low + count)
        found[own] = (rows[own].swapaxes(0, 1) @ matrix).swapaxes(0, 1)
        low += count
    return found


def single_normal(x: Floats, w: Floats | None, reg_covar: float) -> MixtureParams:
    """Return one normal component with the means and variances of what is there.

    Raises
    ------
    ValueError
        If a feature has no value at all.
    """
    w = np.ones(len(x)) if w is None else w
    there = ~np.isnan(x) * w[:, None]
    counts = there.sum(axis=0)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise ValueError(
            f"columns {empty[:10].tolist()} have only missing values in the rows used to find starts; leave them out"
        )
    filled = np.where(np.isnan(x), 0.0, x)
    mean = (there * filled).sum(axis=0) / counts
    variance = (there * (filled - mean) ** 2).sum(axis=0) / counts
    variance = np.where(variance > 0, variance, 1.0) + reg_covar
    return make_params(np.ones(1), mean[None], np.diag(variance)[None], "full")


def without_gaps(rows: Rows, params: MixtureParams) -> Rows:
    """Return rows whose missing values are as one normal component expects them: where starts are looked for."""
    return rows.mapped(_Filled(params))


@dataclass(frozen=True)
class _Filled:
    params: MixtureParams

    def __call__(self, block: Block) -> Block:
        x = np.asarray(block.X, dtype=np.float64)
        if not np.isnan(x).any():
            return block
        mean = self.params.means[0]
        filled = np.empty(x.shape)
        for part in by_patterns(x, 1):
            filled[part] = gaps_of(self.params, x[part]).away[:, 0] + mean
        return replace(block, X=filled)
