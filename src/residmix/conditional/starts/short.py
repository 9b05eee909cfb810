"""Short runs of EM on a subsample, which decide between starts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.starts.sought import Sought
from residmix.em.loop import EMState, run_em
from residmix.mixture.iteration.estep import mixture_block_rows
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.iteration.vector import acceleration
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows

__all__ = ["best_of_short", "settled", "short_run"]

Floats = NDArray[np.float64]

TOL = 1e-5
# Iterations of all runs, and then of the best few.
ITERATIONS = (10, 40)
# Runs end at the same place if components lie so near, in the features' standard deviations.
SAME = 0.03
# The share of the tolerance that is left where there's one run only, and its iterations at most.
SETTLED, SETTLING = 0.01, 100


def best_of_short(
    block: Block,
    starts: Iterable[MixtureParams],
    sought: Sought,
    kept: tuple[int, int],
) -> list[MixtureParams]:
    """Return where short runs on some rows end, the likeliest first, those left out that end where another one does.

    Parameters
    ----------
    block : Block
        The rows.
    starts : iterable of MixtureParams
    sought : Sought
    kept : tuple of int
        How many runs go on, and how many are returned.
    """
    for iterations, most in zip(ITERATIONS, kept, strict=True):
        ended: list[EMState[MixtureParams]] = []
        for start in starts:
            # a start whose covariance collapses is none
            with suppress(SingularCovarianceError):
                ended.append(short_run(block, start, sought, iterations))
        ended.sort(key=lambda state: -state.log_likelihood)
        starts = _different([state.params for state in ended], block, most)
    return list(starts)


def short_run(
    block: Block, start: MixtureParams, sought: Sought, iterations: int = sum(ITERATIONS)
) -> EMState[MixtureParams]:
    """Return where a run on some rows ends."""
    return run_em(_em(block, sought), start, tol=TOL, max_iter=iterations)


def settled(block: Block, start: MixtureParams, sought: Sought) -> MixtureParams:
    """Return where a run on some rows ends that has none beside it: it goes closer to the end than the best of many."""
    how: dict[str, Any] = {"tol": SETTLED * TOL, "accelerate": acceleration(start, block.n_rows, moves=True)}
    return run_em(_em(block, sought), start, max_iter=SETTLING, **how).params


def _em(block: Block, sought: Sought) -> MixtureEM:
    size = mixture_block_rows(block.X.shape[1], sought.n_components)
    return MixtureEM(ArrayRows(block.X, block.design, (), block.weight, size), sought.reg_covar)


def _different(found: list[MixtureParams], block: Block, most: int) -> list[MixtureParams]:
    """Return the first mixtures that differ in a component's weight, in where it is or in what metadata do to it."""
    spread = np.average(np.asarray(block.X, dtype=np.float64) ** 2, axis=0, weights=block.weight) ** 0.5
    chosen, known = list[MixtureParams](), list[Floats]()
    for params in found:
        places = _places(params, np.where(spread > 0, spread, 1.0))
        if not any(_alike(places, other) for other in known):
            chosen.append(params)
            known.append(places)
        if len(chosen) == most:
            break
    return chosen


def _places(params: MixtureParams, spread: Floats) -> Floats:
    """Return the weights, means and coefficients of components, (K, 1 + (1 + q) d)."""
    assert params.coef is not None
    K, coef = params.n_components, params.coef if params.coef.ndim == 3 else params.coef[None]
    parts = params.means[:, None] / spread, np.broadcast_to(coef / spread, (K, *coef.shape[1:]))
    return np.column_stack([params.weights, np.concatenate(parts, axis=1).reshape(K, -1)])


def _alike(one: Floats, other: Floats) -> bool:
    """Tell whether each component has one of the other near it."""
    gap = np.sqrt(((one[:, None] - other) ** 2).sum(axis=2))
    return bool((gap.min(axis=1) <= SAME).all())
