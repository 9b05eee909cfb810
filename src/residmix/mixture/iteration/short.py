"""Several runs of EM side by side, a few iterations each: what an iteration costs besides the rows is paid once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import has_converged, run_em
from residmix.mixture.iteration.estep import MixtureMoments, Problem, mixture_block
from residmix.mixture.iteration.mstep import dead_components, m_step
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import Rows, fold

__all__ = ["short_runs"]

Floats = NDArray[np.float64]


def short_runs(
    rows: Rows, starts: list[MixtureParams], *, reg_covar: float | Floats, tol: float, max_iter: int
) -> list[tuple[float, MixtureParams]]:
    """Return the log-likelihoods and parameters that EM reaches from each of some starts.

    Where components don't know of each other in the M-step, those of all runs go through it together; only the
    responsibilities know which run is whose. Each run stops where it would have stopped alone.

    Parameters
    ----------
    rows : Rows
    starts : list of MixtureParams
        Of one size and family.
    reg_covar : float, or ndarray as for `residmix.mixture.iteration.mstep.covariances_from_scatter`
    tol, max_iter
        As for `residmix.em.loop.run_em`.
    """
    if starts[0].family.linked:
        alone = [run_em(MixtureEM(rows, reg_covar), start, tol=tol, max_iter=max_iter) for start in starts]
        return [(state.log_likelihood, state.params) for state in alone]
    live, values = np.arange(len(starts)), np.full((max_iter + 1, len(starts)), -np.inf)
    ended: dict[int, MixtureParams] = {}
    params = _joined(starts)
    for iteration in range(max_iter + 1):
        problem = Problem.of(params, n_rows=rows.n_rows, runs=len(live))
        moments = fold(rows, partial(_block, problem), MixtureMoments.merge)
        values[iteration, live] = moments.log_likelihood / moments.total
        so_far = values[: iteration + 1]
        done = np.array([iteration > 0 and has_converged(tuple(so_far[:, run]), tol)[0] for run in live])
        done |= iteration == max_iter
        for place in np.flatnonzero(done):
            ended[int(live[place])] = _run_of(params, int(place), len(live))
        if done.all():
            break
        following = _m_step(moments, params, len(live), reg_covar)
        params = _joined([_run_of(following, int(place), len(live)) for place in np.flatnonzero(~done)])
        live = live[~done]
    last = [values[np.isfinite(values[:, run]), run][-1] for run in range(len(starts))]
    return [(float(last[run]), ended[run]) for run in range(len(starts))]


def _block(problem: Problem, block: Block) -> MixtureMoments:
    return mixture_block(block.X, problem, weight=block.weight)


def _m_step(moments: MixtureMoments, params: MixtureParams, runs: int, reg_covar: float | Floats) -> MixtureParams:
    """Return the M-step of all runs; weights of each sum to one."""
    if not dead_components(moments).any():
        following = m_step(moments, params, reg_covar=reg_covar)
        # each run's moments weigh the same
        return replace(following, weights=following.weights * runs)
    parts = zip(*(np.split(part, runs) for part in (moments.weight, moments.shift, moments.scatter)), strict=True)
    each = [
        m_step(replace(moments, weight=w, shift=s, scatter=S), _run_of(params, run, runs), reg_covar=reg_covar)
        for run, (w, s, S) in enumerate(parts)
    ]
    return _joined(each)


def _joined(several: list[MixtureParams]) -> MixtureParams:
    """Return the components of several mixtures as those of one, whose weights sum to how many these were."""
    first = several[0]
    if len(several) == 1:
        return first
    return replace(
        first,
        weights=np.concatenate([one.weights for one in several]),
        means=np.concatenate([one.means for one in several]),
        covariances=np.concatenate([one.covariances for one in several]),
        factors=np.concatenate([one.factors for one in several]),
    )


def _run_of(params: MixtureParams, run: int, runs: int) -> MixtureParams:
    """Undo `_joined` for one of them."""
    K = len(params.weights) // runs
    part = slice(run * K, (run + 1) * K)
    return replace(
        params,
        weights=params.weights[part],
        means=params.means[part],
        covariances=params.covariances[part],
        factors=params.factors[part],
    )
