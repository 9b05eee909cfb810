"""Short runs of EM on a subsample, which decide between starts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from residmix.conditional.starts.sought import Sought
from residmix.em.loop import EMState, run_em
from residmix.mixture.iteration.estep import mixture_block_rows
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.params import MixtureParams, SingularCovarianceError
from residmix.mixture.starts.short_runs import different_runs
from residmix.rows.block import Block
from residmix.rows.rows import ArrayRows

__all__ = ["best_of_short", "short_run"]

Floats = NDArray[np.float64]

TOL = 1e-5
# Iterations of all runs, and then of the best few.
ITERATIONS = (10, 40)


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
    size = mixture_block_rows(block.X.shape[1], sought.n_components)
    rows = ArrayRows(block.X, block.design, (), block.weight, size)
    return run_em(MixtureEM(rows, sought.reg_covar), start, tol=TOL, max_iter=iterations)


def _different(found: list[MixtureParams], block: Block, most: int) -> list[MixtureParams]:
    """Return the first mixtures that differ in a component's weight, in where it is or in what metadata do to it."""
    if not found:
        return found
    spread = np.average(np.asarray(block.X, dtype=np.float64) ** 2, axis=0, weights=block.weight) ** 0.5
    spread = np.where(spread > 0, spread, 1.0)
    weights = np.stack([params.weights for params in found])
    places = np.stack([_places(params) / spread for params in found])
    # (runs, parts, K, d) to (parts d, runs, K)
    runs, parts, K, d = places.shape
    return [found[i] for i in different_runs(weights, places.transpose(1, 3, 0, 2).reshape(parts * d, runs, K), most)]


def _places(params: MixtureParams) -> Floats:
    """Return the means and coefficients of components, (1 + q, K, d)."""
    assert params.coef is not None
    coef = params.coef if params.coef.ndim == 3 else params.coef[None]
    each = np.broadcast_to(coef, (params.n_components, *coef.shape[1:]))
    return np.concatenate([params.means[None], each.swapaxes(0, 1)])
