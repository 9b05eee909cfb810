"""One block of rows through the E-step, straight into the moments that the M-step needs.

Nothing of size rows x components outlives a tile. The scatter is taken about the components' current means, so there's
no cancellation to fear; `residmix.families` moves it to the new means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from residmix.sources.rows import Block

if TYPE_CHECKING:
    from residmix.families import MixtureParams

__all__ = ["MixtureMoments", "MixtureStep", "log_joint", "mixture_block", "mixture_block_rows", "responsibilities"]

Floats = NDArray[np.float64]

LOG_2PI = float(np.log(2 * np.pi))

# Rows that go through the matrix products at once: small enough to stay in the cache.
TILE_ROWS = 512


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
        extra columns; else its diagonals (K, d) for diag and spherical, its sum over k (d, d) for tied.
    log_likelihood : float
        :math:`\sum_i w_i \log p(x_i)`.
    total : float
        :math:`\sum_i w_i`.
    rows : int
        Rows of positive weight.
    """

    weight: Floats
    shift: Floats
    scatter: Floats
    log_likelihood: float
    total: float
    rows: int

    def merge(self, other: MixtureMoments) -> MixtureMoments:
        """Add moments about the same centres, in place."""
        self.weight += other.weight
        self.shift += other.shift
        self.scatter += other.scatter
        self.log_likelihood += other.log_likelihood
        self.total += other.total
        self.rows += other.rows
        return self


@dataclass(frozen=True)
class MixtureStep:
    """`mixture_block` as a picklable function of blocks."""

    params: MixtureParams

    def __call__(self, block: Block) -> MixtureMoments:
        return mixture_block(block.X, self.params, weight=block.weight)


def mixture_block_rows(n_features: int, n_components: int) -> int:
    """Return the block length for a problem: some milliseconds of work, whatever the number of threads."""
    work_per_row = n_components * (n_features**2 + 16 * n_features + 64)
    return int(2 ** np.clip(np.floor(np.log2(4e8 / work_per_row)), 10, 14))


def log_joint(X: NDArray[np.floating], params: MixtureParams, *, log_prior: Floats | None = None) -> Floats:
    r"""Return :math:`\log \pi_k + \log N(x_i \mid \mu_k, \Sigma_k)`, shape (b, K).

    Parameters
    ----------
    X : ndarray (b, d)
    params : MixtureParams
    log_prior : ndarray (b, K), optional
        Replaces the log-weights, row by row.
    """
    joint = np.empty((len(X), params.n_components))
    constant = params.log_det - 0.5 * params.n_features * LOG_2PI
    distances = _DISTANCES[params.covariance_type]
    for start in range(0, len(X), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        joint[tile] = constant - 0.5 * distances(X[tile].astype(np.float64, copy=False), params)
    joint += params.log_weights if log_prior is None else log_prior
    return joint


def _full_distances(X: Floats, params: MixtureParams) -> Floats:
    squared = np.empty((params.n_components, len(X)))
    for k in range(params.n_components):
        y = (X - params.means[k]) @ params.factors[k]
        np.einsum("ij,ij->i", y, y, out=squared[k])
    return squared.T


def _tied_distances(X: Floats, params: MixtureParams) -> Floats:
    # about a point amid the means, or large offsets would eat the digits of the products
    centre = params.means.mean(axis=0)
    y, nu = (X - centre) @ params.factors, (params.means - centre) @ params.factors
    return np.stack([((y - nu[k]) ** 2).sum(axis=1) for k in range(len(nu))], axis=1)


def _scaled_distances(X: Floats, params: MixtureParams) -> Floats:
    factors = params.factors.reshape(params.n_components, -1)
    return np.stack(
        [(((X - mean) * factor) ** 2).sum(axis=1) for mean, factor in zip(params.means, factors, strict=True)],
        axis=1,
    )


_DISTANCES: dict[str, Callable[[Floats, MixtureParams], Floats]] = {
    "full": _full_distances,
    "tied": _tied_distances,
    "diag": _scaled_distances,
    "spherical": _scaled_distances,
}


def mixture_block(
    X: NDArray[np.floating],
    params: MixtureParams,
    *,
    log_prior: Floats | None = None,
    weight: Floats | None = None,
    extra: Floats | None = None,
    extra_centre: Floats | None = None,
) -> MixtureMoments:
    """E-step and moments of one block in one pass.

    Parameters
    ----------
    X : ndarray (b, d), float64 or float32
    params : MixtureParams
    log_prior : ndarray (b, K), optional
        Log-probabilities of the components, row by row; replaces the log-weights.
    weight : ndarray (b,), optional
        Sample weights; rows of weight 0 leave no trace.
    extra : ndarray (b, q), optional
        Columns (a design) that join the scatter but not the density.
    extra_centre : ndarray (q,), optional
        Their centre; 0 by default.
    """
    K = params.n_components
    kind = "full" if extra is not None else params.covariance_type
    centres = params.means
    if extra is not None:
        q = extra.shape[1]
        centre = np.zeros(q) if extra_centre is None else extra_centre
        centres = np.hstack([np.broadcast_to(centre, (K, q)), params.means])
    m = centres.shape[1]
    shape = {"full": (K, m, m), "tied": (m, m)}.get(kind, (K, m))
    moments = MixtureMoments(np.zeros(K), np.zeros((K, m)), np.zeros(shape), 0.0, 0.0, 0)
    for start in range(0, len(X), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        x = X[tile].astype(np.float64, copy=False)
        joint = log_joint(x, params, log_prior=None if log_prior is None else log_prior[tile])
        w = np.ones(len(x)) if weight is None else weight[tile]
        shares, log_density = _normalised(joint)
        counted = w > 0
        moments.log_likelihood += float(w[counted] @ log_density[counted])
        moments.total += float(w.sum())
        moments.rows += int(counted.sum())
        rows = x if extra is None else np.hstack([extra[tile], x])
        _add(moments, rows, shares * w[:, None], centres, kind)
    return moments


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


def _add(moments: MixtureMoments, rows: Floats, shares: Floats, centres: Floats, kind: str) -> None:
    moments.weight += shares.sum(axis=0)
    for k, centre in enumerate(centres):
        deviation = rows - centre
        weighted = deviation * shares[:, k : k + 1]
        moments.shift[k] += weighted.sum(axis=0)
        if kind == "full":
            moments.scatter[k] += weighted.T @ deviation
        elif kind == "tied":
            moments.scatter += weighted.T @ deviation
        else:
            moments.scatter[k] += np.einsum("ij,ij->j", weighted, deviation)
