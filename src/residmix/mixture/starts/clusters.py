"""Clusters and shares of rows into parameters, steadied where rows are few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import cluster_moments
from residmix.mixture.families.family import family
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
        return _steadied(*squares.moments(squares.of_clusters(labels, K)), K, len(w), covariance_type, reg_covar)
    weight, means, scatter = _moments(columns, w, labels, K, diagonal=family(covariance_type).diagonal)
    return _of_scatter(weight, means, scatter, len(w), covariance_type, reg_covar)


def _of_scatter(
    weight: Floats, means: Floats, scatter: Floats, n_rows: int, covariance_type: str, reg_covar: float
) -> Runs:
    """Return the M-step's answers to weights (runs, K), means (runs, K, d) and scatters about them, steadied."""
    count, K, d = means.shape
    mass = weight.ravel()
    W = np.moveaxis(scatter.reshape(count * K, *scatter.shape[2:]), 0, -1) / np.where(mass > 0, mass, 1.0)
    return _steadied(mass, means.reshape(-1, d).T, W, K, n_rows, covariance_type, reg_covar)


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
    scatter = np.stack(parts)[None]
    return _of_scatter(weight[None], means[None], scatter, len(x), covariance_type, reg_covar).one(0)


def _scatter(deviation: Floats, share: Floats, covariance_type: str) -> Floats:
    weighted = deviation * share[:, None]
    if family(covariance_type).diagonal:
        return np.asarray(np.einsum("ij,ij->j", weighted, deviation))
    return weighted.T @ deviation


def _steadied(
    mass: Floats, means: Floats, W: Floats, K: int, n_rows: int, covariance_type: str, reg_covar: float
) -> Runs:
    """Return the M-step's answers to weights (C,), means (d, C) and covariances of clusters, (d, d, C) or (d, C),
    steadied for those of few rows: drawn to the pooled one as if d + 1 more rows had been seen that have it.

    A component without rows gets the weight of one row and the mean of all.
    """
    d, n = len(means), mass.reshape(-1, K)
    total = n.sum(axis=1, keepdims=True)
    if not mass.min() > 0:
        empty = mass <= 0
        middle = ((n / total) * means.reshape(d, -1, K)).sum(axis=2)
        means = np.where(empty, np.repeat(middle, K, axis=1), means)
        W = np.where(empty, 0.0, W)
        steady, n = n, np.where(n > 0, n, total / n_rows)
    else:
        steady = n
    pooled = ((steady / total) * W.reshape(*W.shape[:-1], -1, K)).sum(axis=-1)
    more = n.ravel() + (d + 1.0)
    W = W * (n.ravel() / more) + np.repeat(pooled, K, axis=-1) * ((d + 1.0) / more)
    if W.ndim == 2:
        W += reg_covar
    else:
        np.einsum("iic->ic", W)[...] += reg_covar
    return Runs.of(n.ravel(), means, W, K, covariance_type, more.reshape(n.shape))
