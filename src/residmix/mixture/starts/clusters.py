"""Clusters and shares of rows into parameters, steadied where rows are few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import cluster_moments
from residmix.mixture.families.family import family
from residmix.mixture.iteration.mstep import with_ridge
from residmix.mixture.iteration.quadratic import QuadraticRows
from residmix.mixture.iteration.short import Runs
from residmix.mixture.params import MixtureParams

__all__ = ["from_labels", "from_shares", "runs_from_labels"]

Floats = NDArray[np.float64]

# Numbers, features x rows x clusters x runs, up to which the moments of runs are taken side by side.
MOST_NUMBERS = 1 << 17


def from_labels(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, covariance_type: str, reg_covar: float
) -> MixtureParams:
    """Return the M-step's answer to clusters."""
    return runs_from_labels(columns, w, labels[None], K, covariance_type, reg_covar).one(0)


def runs_from_labels(
    columns: Floats,
    w: Floats,
    labels: NDArray[np.int64],
    K: int,
    covariance_type: str,
    reg_covar: float,
    squares: QuadraticRows | None = None,
) -> Runs:
    """Return the M-step's answers to several clusterings (runs, n), singular ones left out; `squares` are the same
    rows, if they are known.
    """
    if squares is not None:
        weight, means, scatter = squares.clusters(labels, K)
    else:
        weight, means, scatter = _moments(columns, w, labels, K, diagonal=family(covariance_type).diagonal)
    return _steadied(weight, means, scatter, len(w), covariance_type, reg_covar)


def _moments(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, *, diagonal: bool
) -> tuple[Floats, Floats, Floats]:
    """Return weights (runs, K), means (runs, K, d) and scatters of several clusterings."""
    (d, n), runs = columns.shape, len(labels)
    together = MOST_NUMBERS // (d * n * K)
    if together < 2 or runs == 1:
        each = [cluster_moments(columns, w, one, K, diagonal=diagonal) for one in labels]
    else:
        each = [_side_by_side(columns, w, labels[i : i + together], K, diagonal) for i in range(0, runs, together)]
        return tuple(np.concatenate(parts) for parts in zip(*each, strict=True))  # type: ignore[return-value]
    return tuple(np.stack(parts) for parts in zip(*each, strict=True))  # type: ignore[return-value]


def _side_by_side(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, diagonal: bool
) -> tuple[Floats, Floats, Floats]:
    share = (labels[:, None] == np.arange(K)[:, None]) * w
    weight = share.sum(axis=2)
    means = (share @ columns.T) / np.where(weight > 0, weight, 1.0)[:, :, None]
    gap = columns - means[..., None]
    weighted = share[:, :, None] * gap
    return weight, means, np.einsum("rkjn,rkjn->rkj", weighted, gap) if diagonal else weighted @ gap.swapaxes(2, 3)


def from_shares(x: Floats, shares: Floats, covariance_type: str, reg_covar: float) -> MixtureParams:
    """Return the M-step's answer to given responsibilities."""
    weight = shares.sum(axis=0)
    means = (shares.T @ x) / weight[:, None]
    parts = [_scatter(x - mean, share, covariance_type) for mean, share in zip(means, shares.T, strict=True)]
    return _steadied(weight[None], means[None], np.stack(parts)[None], len(x), covariance_type, reg_covar).one(0)


def _scatter(deviation: Floats, share: Floats, covariance_type: str) -> Floats:
    weighted = deviation * share[:, None]
    if family(covariance_type).diagonal:
        return np.asarray(np.einsum("ij,ij->j", weighted, deviation))
    return weighted.T @ deviation


def _steadied(
    weight: Floats, means: Floats, scatter: Floats, n_rows: int, covariance_type: str, reg_covar: float
) -> Runs:
    """Return the M-step's answers to moments about `means` (runs, K, d), steadied for components of few rows.

    Covariances are drawn to the pooled one as if d + 1 more rows had been seen that have it. A component without
    rows gets the weight of one row and the mean of all.
    """
    d, total = means.shape[2], weight.sum(axis=1, keepdims=True)
    pooled = scatter.sum(axis=1, keepdims=True) / total.reshape(-1, *(1,) * (scatter.ndim - 1))
    empty = weight <= 0
    if empty.any():
        middle = (weight[:, None] @ means) / total[:, :, None]
        means = np.where(empty[:, :, None], middle, means)
        weight = np.where(empty, total / n_rows, weight)
    more = weight + (d + 1.0)
    W = (scatter + (d + 1.0) * pooled) / more.reshape(*more.shape, *(1,) * (scatter.ndim - 2))
    W = with_ridge(W.reshape(-1, *W.shape[2:]), reg_covar)
    shares = weight / weight.sum(axis=1, keepdims=True)
    return Runs.of(shares, means.reshape(-1, d), W, more, covariance_type)
