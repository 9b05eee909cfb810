"""Starts of factor-analytic mixtures: where rows are too few for whitening, few directions or variances must do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import EMState, run_em
from residmix.mixture.families.family import family
from residmix.mixture.iteration.estep import log_joint, mixture_block_rows, responsibilities
from residmix.mixture.iteration.mstep import covariances_from_scatter
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError, make_params
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows

__all__ = ["factor_start"]

Floats = NDArray[np.float64]

# Principal components that clusters are looked for in: as many as components, some more, and factors for each.
WIDE = 12
# Iterations of each candidate before the likeliest goes on.
ITERATIONS = 6
# Rows that one more with the pooled covariance stands for, where a cluster has few.
STEADY = 1.0


def factor_start(
    block: Block,
    n_components: int,
    covariance_type: str,
    reg_covar: float,
    find: partial[MixtureParams],
) -> MixtureParams:
    """Return the likeliest of some starts, of clusters in principal components and by variances, a few iterations on.

    Parameters
    ----------
    block : Block
    n_components : int
    covariance_type : str
    reg_covar : float
    find : callable
        ``find(rows, covariance_type=...)`` finds a start of another family.

    Raises
    ------
    SingularCovarianceError
        If none could be found.
    """
    x = np.asarray(block.X, dtype=np.float64)
    w = np.ones(len(x)) if block.weight is None else block.weight
    mean = np.average(x, axis=0, weights=w)
    spread = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=w))
    z = (x - mean) / np.where(spread > 0, spread, 1.0)
    rows = ArrayRows(x, weight=block.weight, block_rows=mixture_block_rows(x.shape[1], n_components))
    ended: list[EMState[MixtureParams]] = []
    for shares in _shares(z, block.weight, n_components, find):
        with suppress(SingularCovarianceError):
            start = _of_shares(x, w[:, None] * shares, covariance_type, reg_covar)
            ended.append(run_em(MixtureEM(rows, reg_covar), start, tol=1e-6, max_iter=ITERATIONS))
    if not ended:
        raise SingularCovarianceError(np.arange(n_components))
    return max(ended, key=lambda state: state.log_likelihood).params


def _shares(z: Floats, weight: Floats | None, K: int, find: partial[MixtureParams]) -> Iterator[Floats]:
    """Yield responsibilities of candidates."""
    n, d = z.shape
    if K == 1:
        yield np.ones((n, 1))
        return
    _, _, axes = np.linalg.svd(z, full_matrices=False) if n * d <= 4_000_000 else (0, 0, _principal(z))
    tried: list[tuple[Rows, str]] = []
    for wide, kind in ((K - 1, "full"), (min(d, K - 1 + WIDE), "tied"), (min(d, K - 1 + WIDE), "full")):
        scores = np.ascontiguousarray(z @ axes[: min(wide, len(axes))].T)
        if n >= 4 * K * (scores.shape[1] + 1):
            tried.append((ArrayRows(scores, weight=weight), kind))
    tried.append((ArrayRows(np.ascontiguousarray(z), weight=weight), "diag"))
    for rows, kind in tried:
        with suppress(SingularCovarianceError):
            params = run_em(MixtureEM(rows, 1e-6), find(rows, covariance_type=kind), tol=1e-5, max_iter=30).params
            yield responsibilities(log_joint(rows.take(np.arange(n)).X, params))


def _principal(z: Floats) -> Floats:
    """Return principal axes, the widest first, from the rows' products."""
    return np.asarray(np.linalg.eigh(z.T @ z)[1].T[::-1], dtype=np.float64)


def _of_shares(x: Floats, shares: Floats, covariance_type: str, reg_covar: float) -> MixtureParams:
    """Return the M-step's answer to shares, covariances drawn a little to the pooled one."""
    weight = np.maximum(shares.sum(axis=0), 1e-3)
    means = (shares.T @ x) / weight[:, None]
    scatter = np.stack(
        [
            ((x - mean) * share[:, None]).T @ (x - mean)
            for mean, share in zip(means, np.ascontiguousarray(shares.T), strict=True)
        ]
    )
    steady = STEADY * family(covariance_type).rows_needed(x.shape[1])
    scatter += steady * scatter.sum(axis=0) / weight.sum()
    covariances, parts = covariances_from_scatter(
        scatter, np.zeros_like(means), weight + steady, covariance_type, reg_covar
    )
    return make_params(weight / weight.sum(), means, covariances, covariance_type, parts)
