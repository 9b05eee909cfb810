r"""Scores: derivatives of a row's log-density with respect to the parameters.

With the share :math:`r_k` of component k, the weight u of Student's tails (1 for normal ones) and :math:`a_k =
\Sigma_k^{-1} (x - \mu_k)`, the derivatives are :math:`r_k u a_k` for means,
:math:`r_k (u a_k a_k' - \Sigma_k^{-1}) / 2` for covariances, :math:`r_k / \pi_k - r_K / \pi_K` for weights (the last
one follows from the others), and :math:`(r_k - \pi_k(m)) [u(m), 1]` for a gate (McLachlan & Peel 2000, "Finite mixture
models", 2.15).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from residmix.kernels.cholesky import inverse_cholesky
from residmix.mixture.after.information_matrix.tangents import half
from residmix.mixture.given.gate import log_priors
from residmix.mixture.iteration.estep import Problem, responsibilities
from residmix.mixture.iteration.step import block_log_joint
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block

__all__ = ["Layout", "block_scores"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Positions of the parameters in the vector of scores.

    Attributes
    ----------
    weights, means, covariances, dof, coef, gate : slice
        `weights` are those of all components but the last; with noise, of all components. With a gate they are the
        weight of the noise only. `covariances` are along the free directions of the family.
    size : int
    """

    weights: slice
    means: slice
    covariances: slice
    dof: slice
    coef: slice
    gate: slice
    size: int

    @classmethod
    def of(cls, params: MixtureParams, n_directions: int, coef: int) -> Layout:
        """Return the layout for so many directions of the covariances, and so many rows of coefficients."""
        K, d = params.means.shape
        noise, gated = params.noise is not None, params.gate is not None
        sizes = [
            (K if noise else K - 1) if not gated else int(noise),
            K * d,
            n_directions,
            K if params.dof is not None else 0,
            coef * d,
            (K - 1) * params.gate.coef.shape[1] if params.gate is not None else 0,
        ]
        ends = np.cumsum([0, *sizes]).tolist()
        every: Any = [*(slice(one, two) for one, two in itertools.pairwise(ends)), ends[-1]]
        return cls(*every)


def block_scores(problem: Problem, layout: Layout, directions: Floats | None, block: Block) -> tuple[Floats, Floats]:
    """Return the scores of a block's rows (b, P), and what their sum over components lost: r, (b, K or K + 1)."""
    params = problem.params
    K, d = params.means.shape
    r = responsibilities(block_log_joint(problem, block))
    away, inverse = _away(params, block)
    pull = r[:, :K]
    scores = np.empty((len(r), layout.size))
    if params.dof is not None:
        # whatever is missing: away is 0 there
        delta = np.einsum("bki,kij,bkj->bk", away, params.full_covariances(), away)
        size = d - np.isnan(block.X).sum(axis=1, keepdims=True)
        scores[:, layout.dof] = pull * _of_dof(params.dof, size, delta)
        pull = pull * (params.dof + size) / (params.dof + delta)
    drawn = pull[:, :, None] * away
    scores[:, layout.means] = drawn.reshape(len(r), -1)
    scores[:, layout.weights] = _of_weights(params, r)
    rows, columns = half(d)
    twice = np.where(rows == columns, 0.5, 1.0)
    spread = drawn[:, :, rows] * away[:, :, columns] - r[:, :K, None] * inverse[..., rows, columns]
    flat = (spread * twice).reshape(len(r), -1)
    scores[:, layout.covariances] = flat if directions is None else flat @ directions
    if layout.coef.stop > layout.coef.start:
        u = params.columns_of(block.design)
        scores[:, layout.coef] = (u[:, :, None] * drawn.sum(axis=1)[:, None, :]).reshape(len(r), -1)
    if params.gate is not None:
        v = np.column_stack([params.gate.columns_of(block.design), np.ones(len(r))])
        rest = r[:, :K] - np.exp(log_priors(block.design, params.gate.coef)) * r[:, :K].sum(axis=1, keepdims=True)
        scores[:, layout.gate] = (rest[:, :-1, None] * v[:, None, :]).reshape(len(r), -1)
    return scores, r


def _away(params: MixtureParams, block: Block) -> tuple[Floats, Floats]:
    """Return precisions times distances to the means, (b, K, d), and precisions (1 or b, K, d, d); of what is there."""
    x = np.asarray(block.X, dtype=np.float64)
    if params.coef is not None:
        x = x - params.columns_of(block.design) @ params.coef
    centred = x[:, None, :] - params.means
    factors = params.full_factors()
    if not np.isnan(x).any():
        inverse = (factors @ factors.swapaxes(1, 2))[None]
        return np.einsum("kij,bkj->bki", inverse[0], centred), inverse
    there, which = np.unique(~np.isnan(x), axis=0, return_inverse=True)
    full, inverse = params.full_covariances(), np.zeros((*centred.shape, params.n_features))
    away = np.zeros_like(centred)
    for number, pattern in enumerate(there):
        rows, seen = np.flatnonzero(which.ravel() == number), np.flatnonzero(pattern)
        if len(seen):
            factor = inverse_cholesky(np.ascontiguousarray(full[:, seen][:, :, seen]))[0]
            part = factor @ factor.swapaxes(1, 2)
            inverse[np.ix_(rows, np.arange(len(full)), seen, seen)] = part
            away[np.ix_(rows, np.arange(len(full)), seen)] = np.einsum("kij,bkj->bki", part, centred[rows][:, :, seen])
    return away, inverse


def _of_dof(dof: Floats, size: NDArray[np.intp], delta: Floats) -> Floats:
    both = dof + size
    found: Floats = 0.5 * (
        digamma(both / 2) - digamma(dof / 2) - size / dof - np.log1p(delta / dof) + both * delta / (dof * (dof + delta))
    )
    return found


def _of_weights(params: MixtureParams, r: Floats) -> Floats:
    K = params.n_components
    noise = 0.0 if params.noise is None else params.noise[0]
    if params.gate is not None:
        return r[:, K:] / max(noise, 1e-300) - (1 - r[:, K:]) / (1 - noise) if params.noise is not None else r[:, :0]
    weights = params.weights * (1 - noise)
    if params.noise is not None:
        return r[:, :K] / weights - r[:, K:] / noise
    found: Floats = r[:, :-1] / weights[:-1] - r[:, -1:] / weights[-1]
    return found
