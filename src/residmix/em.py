"""The EM loop: iterate, judge, stop. It knows neither rows nor families: only a step, and parameters.

One pass over the data gives two things: the log-likelihood of the parameters that went in, and the parameters that
come out. So an iteration is judged at the beginning of the next one, and the log-likelihood of what is returned is
always known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isclose
from typing import Any, Generic, TypeVar

__all__ = ["EMState", "run_em"]

P = TypeVar("P")

# A change of the log-likelihood smaller than this, relative to it, is rounding.
ROUNDING = 1e-14

# All iterations to come may gain this many times `tol`.
REST = 100.0


@dataclass(frozen=True)
class EMState(Generic[P]):
    """All there is to know about a running fit: `run_em` resumed from it goes on bit for bit.

    Attributes
    ----------
    params
        Parameters after `iteration` iterations.
    log_likelihoods : tuple of float
        Of the start and of the parameters after each iteration that has been judged: ``iteration`` values while
        running (the newest parameters haven't met the data yet), ``iteration + 1`` when the loop has ended.
    iteration : int
    converged : bool
    memory
        What the acceleration remembers.
    """

    params: P
    log_likelihoods: tuple[float, ...] = ()
    iteration: int = 0
    converged: bool = False
    memory: Any = None

    @property
    def log_likelihood(self) -> float:
        """The newest judged value, per row."""
        return self.log_likelihoods[-1]


def run_em(
    step: Callable[[P], tuple[float, P]],
    start: P | EMState[P],
    *,
    tol: float,
    max_iter: int,
    history: tuple[float, ...] = (),
    evaluate: Callable[[P], float] | None = None,
    callback: Callable[[EMState[P]], Any] | None = None,
) -> EMState[P]:
    r"""Iterate :math:`\theta \leftarrow step(\theta)` until the log-likelihood has converged.

    Parameters
    ----------
    step : callable
        Takes parameters; returns their log-likelihood per row and the next parameters.
    start : parameters, or EMState to resume from
    tol : float
        Stop when an iteration gained less than `tol` per row and all further ones together are expected to gain less
        than ``100 tol``: with the last two gains g0, g1 and their ratio a = g1 / g0, the rest of the geometric series
        is g1 a / (1 - a) (Aitken's estimate; Boehning et al. 1994). With 0, exactly `max_iter` iterations.
    max_iter : int
        Iterations in all, counted from the first start.
    history : tuple of float
        Log-likelihoods of an earlier run that ended at `start`. They help to judge the first iterations, provided that
        the first pass finds the last of them again (else the data are others).
    evaluate : callable, optional
        Returns just the log-likelihood: a cheaper last pass.
    callback : callable, optional
        Receives an `EMState` after each iteration; the loop ends early when it returns True.
    """
    state = start if isinstance(start, EMState) else EMState(start)
    while True:
        last = state.iteration >= max_iter
        if last and evaluate is not None:
            value, following = evaluate(state.params), state.params
        else:
            value, following = step(state.params)
        if not state.log_likelihoods and not (history and isclose(value, history[-1], rel_tol=1e-12)):
            history = ()
        judged = (*state.log_likelihoods, value)
        converged = state.iteration > 0 and has_converged((*history[:-1], *judged), tol)
        if converged or last:
            return replace(state, log_likelihoods=judged, converged=converged)
        state = replace(state, params=following, log_likelihoods=judged, iteration=state.iteration + 1)
        if callback is not None and callback(state):
            max_iter = state.iteration


def has_converged(values: tuple[float, ...], tol: float) -> bool:
    """Tell whether a sequence of log-likelihoods gains less than `tol`, and little more in the limit."""
    if tol == 0 or len(values) < 2:
        return False
    gain = values[-1] - values[-2]
    if gain <= ROUNDING * abs(values[-1]):
        return True
    if gain >= tol:
        return False
    if len(values) < 3:
        return REST * gain < tol
    before = values[-2] - values[-3]
    return gain < before and gain * gain < REST * tol * (before - gain)
