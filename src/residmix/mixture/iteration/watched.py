"""Runs of EM whose progress shows, with a rehearsal on a sample that says how many passes there will be.

Gains tell little of how long EM will go on: after a tenth of the iterations their trend was wrong by a factor of two
or more on each of 32 mixtures. The same run on some of the rows, begun at the same parameters and stopped by the
same rule, costs a small share of a pass an iteration. Where the data tell components apart it takes as many iterations.
Whether the curvature is looked at in the end (`residmix.em.rest`), which takes ten passes more, may be a close call:
two runs on different rows show where it is, and a third one, on the rows of both, which of them is to be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

import numpy as np

from residmix.em.loop import EMState, run_em
from residmix.em.observers import ALIKE, FitProgress
from residmix.mixture.iteration.step import MixtureEM
from residmix.mixture.iteration.vector import acceleration
from residmix.mixture.params import MixtureParams
from residmix.rows.rows import ArrayRows
from residmix.rows.sampled import SampledRows, evenly

__all__ = ["run_watched"]

State = EMState[MixtureParams]

# Rows of the rehearsals: this share of all, between these numbers; at least so many for each component and feature.
SHARE, LEAST, MOST, EACH = 1 / 50, 20_000, 100_000, 20
# They take no more than this share of a pass an iteration, no more passes than this in all, and this room.
SMALL, PASSES, BYTES = 1 / 10, 2, 1 << 25


def run_watched(
    em: MixtureEM,
    start: MixtureParams | State,
    *,
    tol: float,
    max_iter: int,
    moves: bool = True,
    quiet: bool = False,
    callback: Callable[[State], Any] | None = None,
    history: tuple[float, ...] = (),
    bar: float = -inf,
) -> State:
    """Run EM, and show how far it is; the result is the same whether that shows or not.

    Parameters
    ----------
    em : MixtureEM
    start, tol, max_iter, callback, history, bar
        As in :func:`residmix.em.loop.run_em`.
    moves : bool
        Whether steps are extrapolated.
    quiet : bool
        Whether nothing is to be shown.
    """
    params = start.params if isinstance(start, EMState) else start
    how: dict[str, Any] = {
        "tol": tol,
        "accelerate": acceleration(params, em.rows.n_rows, moves=moves) if tol > 0 else None,
        "max_iter": max_iter,
    }
    progress = FitProgress(em.rows.n_rows, tol=tol, max_iter=max_iter, then=callback, quiet=quiet)
    with progress, _rehearsing(em, progress, params, how):
        return run_em(em, start, history=history, evaluate=em.evaluate, callback=progress, bar=bar, **how)


@contextmanager
def _rehearsing(em: MixtureEM, progress: FitProgress, params: MixtureParams, how: dict[str, Any]) -> Iterator[None]:
    """Let the first pass keep the rows of a rehearsal, if there's someone to tell and enough rows."""
    rows, (K, d) = em.rows, params.means.shape
    size = max(min(max(int(SHARE * rows.n_rows), LEAST), MOST), EACH * K * d)
    room = 8 * size * (d + params.n_design)
    if not progress.shown or how["tol"] == 0 or size > SMALL * rows.n_rows or room > BYTES or em.errors is not None:
        yield
        return
    em.rows = sampled = SampledRows(rows, evenly(rows.n_rows, size))
    progress.rehearse = partial(_rehearsed, em, sampled, params, how)
    try:
        yield
    finally:
        em.rows = rows


def _rehearsed(
    em: MixtureEM, sampled: SampledRows, start: MixtureParams, how: dict[str, Any], state: State
) -> tuple[int, int, bool] | None:
    """Return the least and most passes that runs on halves of the sample take, and whether all came to their end.

    Halves that differ are judged by a run on the whole sample: it and the half that's closer to it count. They begin
    where the run itself began, one pass before `state`. None if one fails.
    """
    block = sampled.sample()
    most = max(1, int(PASSES * em.rows.n_rows / block.n_rows))
    at_most = min(most, how["max_iter"] - state.iteration + 1)

    def rehearsal(index: slice) -> tuple[int, bool]:
        part = block.select(np.arange(block.n_rows)[index])
        few = ArrayRows(part.X, part.design, part.codes, part.weight, em.rows.block_rows)
        passes, ended = _passes(MixtureEM(few, em.reg_covar, em.joint), start, {**how, "max_iter": at_most})
        return max(passes - 1, 1), ended or at_most < most

    try:
        runs = [rehearsal(slice(first, None, 2)) for first in range(2)]
        counts = [passes for passes, _ in runs]
        if max(counts) > ALIKE * min(counts):
            whole = rehearsal(slice(None))
            runs = [whole, min(runs, key=lambda run: abs(run[0] - whole[0]))]
    except ValueError:
        return None
    counts = [passes for passes, _ in runs]
    return min(counts), max(counts), all(ended for _, ended in runs)


def _passes(em: MixtureEM, start: MixtureParams, how: dict[str, Any]) -> tuple[int, bool]:
    """Return how many passes a run takes, and whether it converged."""
    passes = [0]

    def step(params: MixtureParams) -> tuple[float, MixtureParams]:
        passes[0] += 1
        return em(params)

    def evaluate(params: MixtureParams) -> float:
        passes[0] += 1
        return em.evaluate(params)

    ended = run_em(step, start, evaluate=evaluate, **how)
    return passes[0], ended.converged
