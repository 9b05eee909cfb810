"""EM over near components, and better sets of these in between (see `residmix.mixture.iteration.near`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.em.loop import LITTLE, REST, EMState, run_em
from residmix.em.observers import FitProgress
from residmix.errors import note
from residmix.mixture.iteration.estep import Problem
from residmix.mixture.iteration.near import likeliest, near_block_rows
from residmix.mixture.iteration.step import MixtureEM, block_log_joint
from residmix.mixture.iteration.vector import acceleration
from residmix.mixture.params import MixtureParams
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows, Rows
from residmix.rows.sampled import evenly

__all__ = ["all_sets", "run_near", "tell_of_gap"]

Floats = NDArray[np.float64]
Sets = NDArray[np.int32]
State = EMState[MixtureParams]

# Iterations before all components are looked at again, if much is missing then; then so many times as many.
FIRST, TIMES = 6, 4
# Rows of which the exact density is computed, and the share of it that may be missing: before all components are looked
# at again, and without a word in the end.
JUDGED, MISSING = 2_000, (2e-4, 1e-3)
# Rows whose densities in all components are there at once.
CHUNK = 1 << 21


def run_near(
    em: MixtureEM,
    start: MixtureParams,
    size: int,
    *,
    tol: float,
    max_iter: int,
    moves: bool = True,
    quiet: bool = False,
    callback: Callable[[State], Any] | None = None,
) -> State:
    """Run EM over the `size` likeliest components of each row; log-likelihoods are the lower bounds.

    Sets are found among all components first. Each part of the run is exact EM with fixed sets. After 6, 24, 96 and so
    on iterations and in the end some rows say what is missing: if that's much, all components are looked at again. The
    run ends if it isn't, or better sets gain no more than all iterations to come may.

    Parameters
    ----------
    em, start, tol, max_iter, moves, quiet, callback
        As in :func:`residmix.mixture.iteration.watched.run_watched`.
    size : int
    """
    whole, stopped, state, revived = em.rows, False, EMState(start), 0
    em.rows = whole.with_block_rows(near_block_rows(start.n_components, whole.n_features))

    def each(now: State) -> bool:
        nonlocal stopped
        stopped = callback is not None and bool(callback(now))
        # one that begins anew is in nobody's set yet
        return stopped or len(em.revived) > revived

    how: dict[str, Any] = {"accelerate": acceleration(start, whole.n_rows, moves=moves) if tol > 0 else None}
    little, until = LITTLE * REST * tol, FIRST
    try:
        em.near, _ = all_sets(em.rows, start, size)
        with FitProgress(em.rows.n_rows, tol=tol, max_iter=max_iter, then=each, quiet=quiet) as progress:
            while True:
                revived = len(em.revived)
                here: dict[str, Any] = {"max_iter": min(max_iter, until), "evaluate": em.evaluate, "callback": progress}
                state = run_em(em, state, tol=tol, **here, **how)
                if stopped or state.iteration >= max_iter:
                    return state
                if len(em.revived) > revived or _much_missing(em, state.params):
                    em.near, value = all_sets(em.rows, state.params, size)
                    if state.converged and value - state.log_likelihood < little:
                        return state
                elif state.converged:
                    return state
                until *= TIMES if state.iteration >= until else 1
                # the first pass over the new sets judges these parameters again
                state = EMState(state.params, state.log_likelihoods[:-1], state.iteration)
    finally:
        em.rows, em.near = whole, None


def all_sets(rows: Rows, params: MixtureParams, size: int) -> tuple[Sets, float]:
    """Return the `size` likeliest of all components of each row, (n, size), and the mean log-density over them."""
    problem = Problem.of(params, n_rows=rows.n_rows)
    return _joined(rows.map(partial(_of_all, problem, size)))


def _joined(parts: Any) -> tuple[Sets, float]:
    found, values, weights = zip(*parts, strict=True)
    return np.concatenate(found), float(np.sum(values) / np.sum(weights))


def _of_all(problem: Problem, size: int, block: Block) -> tuple[Sets, float, float]:
    rows = max(1, CHUNK // problem.params.n_components)
    parts = [block.select(slice(begin, begin + rows)) for begin in range(0, block.n_rows, rows)]
    found, density = zip(*(likeliest(block_log_joint(problem, part), size) for part in parts), strict=True)
    return np.concatenate(found), *_weighted(np.concatenate(density), block)


def _weighted(density: Floats, block: Block) -> tuple[float, float]:
    """Return the weighted sum of the rows' densities, and of the weights."""
    if block.weight is None:
        return float(density.sum()), float(len(density))
    counted = block.weight > 0
    return float(block.weight[counted] @ density[counted]), float(block.weight.sum())


def _some(rows: Rows) -> tuple[ArrayRows, NDArray[np.intp]]:
    index = evenly(rows.n_rows, JUDGED)
    block = rows.take(index)
    return ArrayRows(block.X, block.design, block.codes, block.weight, block_rows=block.n_rows), index


def _much_missing(em: MixtureEM, params: MixtureParams) -> bool:
    few, index = _some(em.rows)
    assert em.near is not None
    exact = MixtureEM(few, em.reg_covar, em.joint).evaluate(params)
    bound = MixtureEM(few, em.reg_covar, em.joint, near=em.near[index]).evaluate(params)
    return exact - bound > MISSING[0] * abs(exact)


def tell_of_gap(rows: Rows, params: MixtureParams, size: int) -> None:
    """Note what so many components of a row miss of the log-likelihood, if some rows say that it's much."""
    few, _ = _some(rows)
    exact = MixtureEM(few, 0.0).evaluate(params)
    missing = exact - all_sets(few, params, size)[1]
    if missing > MISSING[1] * abs(exact):
        note(
            "near-components",
            f"the {size} components that are looked at for each row miss {missing:.3g} of the log-likelihood of "
            f"{exact:.4g} per row. Use a larger search=, or search='all'",
            n_near=size,
            missing=missing,
            log_likelihood=exact,
        )
