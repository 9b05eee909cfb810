"""Where EM begins: parameters found on a subsample, by k-means++ and short runs, the best one kept.

Several short runs of EM from random starts, the best of them run to the end: Biernacki, Celeux & Govaert (2003),
"Choosing starting values for the EM algorithm", their em-EM strategy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.random import sample_without_replacement

from residmix.kernels.clusters import cluster_moments, lloyd, seed
from residmix.mixture.estep import mixture_block_rows
from residmix.mixture.families.family import family
from residmix.mixture.mstep import covariances_from_scatter
from residmix.mixture.params import MixtureParams, make_params, params_from_precisions
from residmix.mixture.short import short_runs
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.rows.threads import one_blas_thread

__all__ = ["INIT_PARAMS", "check_given", "check_goes_on", "find_start", "subsample"]

Floats = NDArray[np.float64]

INIT_PARAMS = ("short-em", "kmeans", "k-means++", "random", "random_from_data")

SHORT_RUNS = 10
SHORT_ITERATIONS = 10
SHORT_TOL = 1e-3

# Share of the data's variance added to every covariance in short runs: a run must not win by a spike on a few rows.
SHORT_RIDGE = 1e-3


def subsample_rows(n_components: int, n_features: int) -> int:
    """Return how many rows starts are found on: enough to see every component's covariance."""
    return max(10_000, 20 * n_components * n_features)


def subsample_index(n_rows: int, size: int, random_state: np.random.RandomState) -> NDArray[np.integer[Any]]:
    """Return `size` different row numbers in order, or all; unlike numpy's choice without shuffling all there are."""
    if n_rows <= size:
        return np.arange(n_rows)
    return np.sort(sample_without_replacement(n_rows, size, random_state=random_state))


def find_start(
    rows: Rows,
    n_components: int,
    *,
    covariance_type: str,
    reg_covar: float,
    random_state: np.random.RandomState,
    init_params: str = "short-em",
    weights: Floats | None = None,
    means: Floats | None = None,
    precisions: Floats | None = None,
) -> MixtureParams:
    """Return parameters for EM to begin with.

    Parameters
    ----------
    rows : Rows
    init_params : str
        ``"short-em"``: the best of several short EM runs; ``"kmeans"``: k-means clusters; ``"k-means++"``: rows
        nearest to seeds far apart; ``"random_from_data"``: rows nearest to random rows; ``"random"``: random shares.
    weights, means, precisions : ndarray, optional
        Given parameters; what isn't given is found, from clusters around `means` if these are.
    """
    if weights is not None and means is not None and precisions is not None:
        return params_from_precisions(weights, means, precisions, covariance_type)
    x, w = _sorted_subsample(rows, n_components, random_state)
    # one BLAS thread: the number of threads must not change where a start lies
    with one_blas_thread():
        if means is not None:
            spread = _spread(x, w, covariance_type)
            labels = lloyd(np.ascontiguousarray((x / spread).T), w, (means / spread)[None], max_iter=0)[0]
            start = _from_labels(np.ascontiguousarray(x.T), w, labels, n_components, covariance_type, reg_covar)
        elif init_params == "short-em" and n_components > 1:
            start = _short_em(x, w, n_components, covariance_type, random_state)
        else:
            start = _one_start(x, w, n_components, covariance_type, reg_covar, random_state, init_params)
    weights = start.weights if weights is None else weights
    means = start.means if means is None else means
    if precisions is not None:
        return params_from_precisions(weights, means, precisions, covariance_type)
    return make_params(weights, means, start.covariances, covariance_type)


def subsample(rows: Rows, n_components: int, random_state: np.random.RandomState) -> Block:
    """Return the rows that starts are found on."""
    size = subsample_rows(n_components, rows.n_features)
    return rows.take(subsample_index(rows.n_rows, size, random_state))


def _sorted_subsample(rows: Rows, n_components: int, random_state: np.random.RandomState) -> tuple[Floats, Floats]:
    block = subsample(rows, n_components, random_state)
    w = np.ones(len(block.X)) if block.weight is None else block.weight
    x = np.asarray(block.X, dtype=np.float64)
    # sorted, so that draws are the same for the same rows in any order, repeated or weighted
    order = np.argsort(x[:, 0], kind="stable")
    order = order[w[order] > 0]
    return x[order], w[order]


def _spread(x: Floats, w: Floats, covariance_type: str) -> Floats:
    """Return the columns' standard deviations, 1 where constant; one value for all if the family has no other units."""
    mean = np.average(x, axis=0, weights=w)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    spread = np.where(spread > 1e-12 * np.abs(mean), spread, 0.0)
    if not family(covariance_type).unit_free:
        spread = np.broadcast_to(np.sqrt(np.mean(spread**2)), spread.shape)
    return np.where(spread > 0, spread, 1.0)


def _short_em(x: Floats, w: Floats, K: int, covariance_type: str, random_state: np.random.RandomState) -> MixtureParams:
    """Return the best of several short runs, half of them from k-means clusters, half from k-means++ seeds."""
    spread, centre = _spread(x, w, covariance_type), np.average(x, axis=0, weights=w)
    z = (x - centre) / spread
    columns = np.ascontiguousarray(z.T)
    rows = ArrayRows(z, weight=None if (w == 1).all() else w, block_rows=mixture_block_rows(x.shape[1], K))
    seeds = seed(columns, w, K, random_state, SHORT_RUNS)
    labels = [lloyd(columns, w, seeds[0::2], 0), lloyd(columns, w, seeds[1::2], SHORT_ITERATIONS)]
    starts = [
        _from_labels(columns, w, one, K, covariance_type, SHORT_RIDGE)
        for pair in zip(*labels, strict=True)
        for one in pair
    ]
    best = short_runs(rows, starts, reg_covar=SHORT_RIDGE, tol=SHORT_TOL, max_iter=SHORT_ITERATIONS)
    return _rescaled(best, centre, spread)


def _rescaled(params: MixtureParams, centre: Floats, spread: Floats) -> MixtureParams:
    """Return the mixture of ``centre + spread * z`` for the mixture of z."""
    covariances = params.family.scaled(params.covariances, spread)
    return make_params(params.weights, centre + params.means * spread, covariances, params.covariance_type)


def _one_start(
    x: Floats,
    w: Floats,
    K: int,
    covariance_type: str,
    reg_covar: float,
    random_state: np.random.RandomState,
    kind: str,
) -> MixtureParams:
    if kind == "random":
        shares = random_state.uniform(size=(len(x), K))
        return _from_shares(x, shares / shares.sum(axis=1, keepdims=True) * w[:, None], covariance_type, reg_covar)
    columns = np.ascontiguousarray((x / _spread(x, w, covariance_type)).T)
    if kind == "random_from_data":
        centres = columns.T[None, random_state.choice(len(x), K, replace=False)]
    else:
        centres = seed(columns, w, K, random_state)
    labels = lloyd(columns, w, centres, max_iter=100 if kind == "kmeans" else 0)[0]
    return _from_labels(np.ascontiguousarray(x.T), w, labels, K, covariance_type, reg_covar)


def _from_labels(
    columns: Floats, w: Floats, labels: NDArray[np.int64], K: int, covariance_type: str, reg_covar: float
) -> MixtureParams:
    """Return the M-step's answer to clusters."""
    diagonal = family(covariance_type).diagonal
    weight, means, scatter = cluster_moments(columns, w, labels, K, diagonal=diagonal)
    return _steadied(weight, means, scatter, len(w), covariance_type, reg_covar)


def _from_shares(x: Floats, shares: Floats, covariance_type: str, reg_covar: float) -> MixtureParams:
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
    covariances = covariances_from_scatter(scatter, zero, weight + strength, covariance_type, reg_covar)
    return make_params(weight / weight.sum(), means, covariances, covariance_type)


def check_given(
    weights: Any, means: Any, precisions: Any, covariance_type: str, n_components: int, n_features: int
) -> dict[str, Floats | None]:
    """Return the user's starting values as float64 arrays (copies), or raise with scikit-learn's wording."""
    K, d = n_components, n_features
    weights = _shaped(weights, (K,), "weights")
    means = _shaped(means, (K, d), "means")
    precisions = _shaped(precisions, family(covariance_type).shape_of(K, d), f"{covariance_type} precision")
    if weights is not None:
        if (weights < 0).any() or (weights > 1).any():
            raise ValueError(
                "The parameter 'weights' should be in the range [0, 1], but got max value "
                # scikit-learn's text has the two the wrong way round, and its tests match it
                f"{weights.min():.5f}, min value {weights.max():.5f}"
            )
        if not np.isclose(weights.sum(), 1.0, rtol=0, atol=1e-6):
            raise ValueError(
                f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
            )
        weights = weights / weights.sum()
    if precisions is not None:
        _check_precisions(precisions, covariance_type)
    return {"weights": weights, "means": means, "precisions": precisions}


def check_goes_on(
    means: Floats, covariances: Floats, covariance_type: str, n_components: int, n_features: int, method: str
) -> None:
    """Raise if a fitted mixture isn't of the size and family that a fit is to go on with."""
    K, d = n_components, n_features
    if means.shape != (K, d) or covariances.shape != family(covariance_type).shape_of(K, d):
        raise ValueError(
            f"{method} goes on from the last fit, but that has means of shape {means.shape} and covariances of shape "
            f"{covariances.shape}, which isn't n_components={K} and covariance_type={covariance_type!r} with {d} "
            "features; begin anew with a clone of the estimator"
        )


def _shaped(values: Any, shape: tuple[int, ...], name: str) -> Floats | None:
    if values is None:
        return None
    array = check_array(values, dtype=np.float64, ensure_2d=False, allow_nd=True, copy=True)
    if array.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {array.shape}")
    return array


def _check_precisions(precisions: Floats, covariance_type: str) -> None:
    if not family(covariance_type).matrices:
        if (precisions <= 0).any():
            raise ValueError(f"'{covariance_type} precision' should be positive")
        return
    symmetric = np.allclose(precisions, np.swapaxes(precisions, -1, -2))
    if not (symmetric and (np.linalg.eigvalsh(precisions) > 0).all()):
        raise ValueError(f"'{covariance_type} precision' should be symmetric, positive-definite")
