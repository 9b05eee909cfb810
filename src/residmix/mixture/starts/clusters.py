"""Clusters and shares of rows into parameters, steadied where rows are few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residmix.kernels.clusters import cluster_moments
from residmix.mixture.families.family import family
from residmix.mixture.iteration.mstep import covariances_from_scatter
from residmix.mixture.params import MixtureParams, make_params

__all__ = ["from_labels", "from_shares"]

Floats = NDArray[np.float64]


def from_labels(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, covariance_type: str, reg_covar: float
) -> MixtureParams:
    """Return the M-step's answer to clusters."""
    diagonal = family(covariance_type).diagonal
    weight, means, scatter = cluster_moments(columns, w, labels, K, diagonal=diagonal)
    return _steadied(weight, means, scatter, len(w), covariance_type, reg_covar)


def from_shares(x: Floats, shares: Floats, covariance_type: str, reg_covar: float) -> MixtureParams:
    """Return the M-step's answer to given responsibilities."""
    weight = shares.sum(axis=0)
    means = (shares.T @ x) / weight[:, None]
    parts = [_scatter(x - mean, share, covariance_type) for mean, share in zip(means, shares.T, strict=True)]
    return _steadied(weight, means, np.stack(parts), len(x), covariance_type, reg_covar)


def _scatter(deviation: Floats, share: Floats, covariance_type: str) -> Floats:
    weighted = deviation * share[:, None]
    if family(covariance_type).diagonal:
        return np.einsum("ij,ij->j", weighted, deviation)
    return weighted.T @ deviation


def _steadied(
    weight: Floats, means: Floats, scatter: Floats, n_rows: int, covariance_type: str, reg_covar: float
) -> MixtureParams:
    """Return the M-step's answer to moments about `means`, steadied for components of few rows.

    Covariances are drawn to the pooled one as if d + 1 more rows had been seen that have it. A component without
    rows gets the weight of one row and the mean of all.
    """
    strength, total = means.shape[1] + 1.0, weight.sum()
    scatter = scatter + strength * scatter.sum(axis=0) / total
    empty = weight <= 0
    if empty.any():
        means = np.where(empty[:, None], weight @ means / total, means)
        weight = np.where(empty, total / n_rows, weight)
    zero = np.zeros_like(means)
    covariances, parts = covariances_from_scatter(scatter, zero, weight + strength, covariance_type, reg_covar)
    return make_params(weight / weight.sum(), means, covariances, covariance_type, parts)
