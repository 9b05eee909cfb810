"""The EM loop: iterate, judge, stop. It knows neither rows nor families: only a step, and parameters.

One pass over the data gives two things: the log-likelihood of the parameters that went in, and the parameters that
come out. So an iteration is judged at the beginning of the next one, and the log-likelihood of what is returned is
always known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isclose
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from residmix.em.rest import FLAT, look_ahead

__all__ = ["Acceleration", "EMState", "Memory", "run_em"]

P = TypeVar("P")

# A change of the log-likelihood smaller than this, relative to it, is rounding.
ROUNDING = 1e-14

# All iterations to come may gain this many times `tol`.
REST = 100.0

# Gains that shrink by more than this from one iteration to the next leave no doubt: less than the last is to come.
SWIFT = 0.5

# What an outlook may find, as a share of what all iterations to come may gain, for the fit to count as converged.
LITTLE = 0.25

# The same where a direction is flat, since a valley may be long.
NOTHING = 1e-3

# Iterations until the next outlook after one that found more to come: so many, and a share of those so far.
PATIENCE = (5, 0.3)

# Outlooks in a row that may find a flat direction and nothing to gain before that is believed.
FLATS = 1

# An eigenvalue up to which one such outlook is enough.
FLATTER = 0.9995

# How many times the two steps before an extrapolation may be stretched at first.
REACH = 4.0

# Ratios of gains that are remembered.
RATIOS = 8

# Iterations before the first extrapolation: EM is quick at first, and far from the straight lines that it takes later.
WARM_UP = 5


@dataclass(frozen=True)
class Acceleration(Generic[P]):
    """How parameters become a vector that can be extrapolated, and back.

    Attributes
    ----------
    pack : callable
        ``pack(params, like) -> (size,)``; `like` are the parameters that set the units.
    unpack : callable
        ``unpack(vector, like) -> params``; any finite vector must give valid parameters.
    moves : bool
        False if iterations are to stay textbook EM, and vectors are for looking ahead only.
    """

    pack: Callable[[P, P], NDArray[np.float64]]
    unpack: Callable[[NDArray[np.float64], P], P]
    moves: bool = True


@dataclass(frozen=True)
class Memory(Generic[P]):
    """State of the acceleration between passes.

    Attributes
    ----------
    base
        Parameters one plain iteration ago, if there has been one since the last extrapolation.
    fallback
        Where plain EM would be, while an extrapolation is on trial.
    reach : float
        How far it may go.
    ratios : tuple of float
        How the last gains shrank from one iteration to the next: the largest counts when the rest is estimated, since
        right after an extrapolation the quick directions hide the slow ones.
    quiet_until : int
        The iteration before which no outlook (:mod:`residmix.em.rest`) is taken, since the last one found more to come.
    flats : int
        Outlooks in a row that found a flat direction and nothing to gain in it.
    """

    base: P | None = None
    fallback: P | None = None
    reach: float = REACH
    ratios: tuple[float, ...] = ()
    quiet_until: int = 0
    flats: int = 0

    def then(self, base: P | None, fallback: P | None, reach: float, ratios: tuple[float, ...]) -> Memory[P]:
        """Return the memory after another iteration."""
        # not by `replace`, which takes as long as all else between two passes
        return Memory(base, fallback, reach, ratios, self.quiet_until, self.flats)


@dataclass(frozen=True)
class EMState(Generic[P]):
    """State of a running fit; `run_em` resumed from it gives bitwise equal results.

    Attributes
    ----------
    params
        Parameters after `iteration` iterations.
    log_likelihoods : tuple of float
        Of the start and of the parameters after each iteration that has been judged: ``iteration`` values while
        running (the newest parameters haven't met the data yet), ``iteration + 1`` when the loop has ended.
    iteration : int
    converged : bool
    memory : Memory, optional
        What the acceleration remembers between passes.
    """

    params: P
    log_likelihoods: tuple[float, ...] = ()
    iteration: int = 0
    converged: bool = False
    memory: Memory[P] | None = None

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
    accelerate: Acceleration[P] | None = None,
    history: tuple[float, ...] = (),
    evaluate: Callable[[P], float] | None = None,
    callback: Callable[[EMState[P]], Any] | None = None,
    bar: float = -inf,
) -> EMState[P]:
    r"""Iterate :math:`\theta \leftarrow step(\theta)` until the log-likelihood has converged.

    Parameters
    ----------
    step : callable
        Takes parameters; returns their log-likelihood per row and the next parameters.
    start : parameters, or EMState to resume from
    tol : float
        Stop when all further iterations together are expected to gain less than ``100 tol`` per row. This is checked
        once a plain iteration gained less than `tol` and Aitken's estimate agrees: with the last gain g and the ratio a
        of two gains, the rest of the geometric series is g a / (1 - a) (Boehning et al. 1994). Where gains shrink
        slowly, :func:`residmix.em.rest.look_ahead` decides. With 0, exactly `max_iter` iterations.
    max_iter : int
        Iterations in all, counted from the first start.
    accelerate : Acceleration, optional
        After five iterations every second one extrapolates the two before; it is undone if the log-likelihood fell.
        Without it the iterations are textbook EM, and Aitken's estimate alone decides.
    history : tuple of float
        Log-likelihoods of an earlier run that ended at `start`. They help to judge the first iterations, provided that
        the first pass finds the last of them again (else the data are others).
    evaluate : callable, optional
        Returns just the log-likelihood: a cheaper last pass.
    callback : callable, optional
        Receives an `EMState` after each iteration; the loop ends early when it returns True.
    bar : float
        No outlook is taken of a run that Aitken's estimate leaves below this, because another one is ahead.
    """
    state = start if isinstance(start, EMState) else EMState(start)
    if accelerate is not None and state.memory is None:
        state = replace(state, memory=Memory())
    while True:
        last, memory = state.iteration >= max_iter, state.memory
        on_trial = memory is not None and memory.fallback is not None
        try:
            if last and evaluate is not None and (memory is None or memory.base is None):
                value, following = evaluate(state.params), state.params
            else:
                value, following = step(state.params)
        except ValueError:
            if not on_trial:
                raise
            value, following = -inf, state.params
        if memory is not None and memory.fallback is not None and not value >= state.log_likelihood:
            # the extrapolation went too far: back to where plain EM would be
            cautious = replace(memory, fallback=None, reach=max(REACH, memory.reach / 16))
            state = replace(state, params=memory.fallback, memory=cautious)
            continue
        judged = (*state.log_likelihoods, value)
        if len(judged) == 1 and not (history and isclose(value, history[-1], rel_tol=1e-12)):
            history = ()
        if accelerate is None or memory is None or not accelerate.moves or state.iteration < WARM_UP:
            converged, slow = has_converged((*history[:-1], *judged), tol) if state.iteration > 0 else (False, False)
            slow |= accelerate is not None and not accelerate.moves  # who wants textbook iterations has the time
        else:
            following, memory, converged, slow = _accelerated(accelerate, state.params, memory, judged, following, tol)
        if converged and slow and accelerate is not None and memory is not None and value > bar:
            if state.iteration < memory.quiet_until:
                converged = False
            else:
                look = partial(_looked_ahead, step, evaluate, accelerate)
                following, memory, converged = look(replace(state, memory=memory), value, following, tol)
        if converged or last:
            return replace(state, log_likelihoods=judged, converged=converged)
        state = EMState(following, judged, state.iteration + 1, memory=memory)
        if callback is not None and callback(state):
            max_iter = state.iteration


def _looked_ahead(
    step: Callable[[P], tuple[float, P]],
    evaluate: Callable[[P], float] | None,
    accelerate: Acceleration[P],
    state: EMState[P],
    value: float,
    following: P,
    tol: float,
) -> tuple[P, Memory[P], bool]:
    """Return where to go next, what to remember and whether to stop, where Aitken's estimate says so but may be wrong.

    A flat direction in which nothing is found makes for another outlook later, and is believed then: parameters that
    the data don't tell apart are as flat as a saddle.
    """
    memory = state.memory
    assert memory is not None
    judge = evaluate if evaluate is not None else lambda params: step(params)[0]
    if memory.fallback is not None:  # an extrapolation is next, and this is where it came from
        following = memory.fallback
    found = look_ahead(step, judge, accelerate.pack, accelerate.unpack, state.params, value, following)
    little = found.value - value < LITTLE * REST * tol
    # textbook iterations are even enough for Aitken's estimate to count, too
    nothing = found.value - value < (NOTHING if accelerate.moves else LITTLE) * REST * tol
    flats = memory.flats + 1 if nothing and found.slowest > FLAT else 0
    if (little and found.slowest <= FLAT) or (nothing and found.slowest <= FLATTER) or flats > FLATS:
        return following, memory, True
    begin, share = PATIENCE
    patient = Memory[P](
        reach=memory.reach,
        ratios=memory.ratios,
        quiet_until=state.iteration + begin + int(share * state.iteration),
        flats=flats,
    )
    moved = accelerate.moves and found.value > value
    return (found.params if moved else following), patient, False


def _accelerated(
    accelerate: Acceleration[P],
    params: P,
    memory: Memory[P],
    values: tuple[float, ...],
    following: P,
    tol: float,
) -> tuple[P, Memory[P], bool, bool]:
    """Return where to go next, what to remember, whether to stop and whether gains are slow to shrink.

    SQUAREM: Varadhan & Roland (2008), eq. 15.
    """
    if memory.base is None:
        return following, memory.then(params, None, memory.reach, memory.ratios), False, False
    x0, x1, x2 = (accelerate.pack(point, memory.base) for point in (memory.base, params, following))
    first, second = x1 - x0, x2 - x1
    bend = second - first
    squared, ratio = float(first @ first), float(second @ second) / max(float(first @ first), 1e-300)
    ratios = (*memory.ratios, ratio)[-RATIOS:]
    gain = values[-1] - values[-2]
    # once gains are tiny their ratios are noise: then the outlook decides
    converged = _settled(gain, max(ratios), values[-1], tol) or gain < NOTHING * tol
    length = min(math.sqrt(squared / max(float(bend @ bend), 1e-300)), memory.reach)
    trial = x0 + 2 * length * first + length**2 * bend
    slow = max(ratios) > SWIFT
    if length <= 1 or not np.isfinite(trial).all():
        return following, memory.then(None, None, memory.reach, ratios), converged, slow
    reach = memory.reach * 4 if length == memory.reach else memory.reach
    return accelerate.unpack(trial, memory.base), memory.then(None, following, reach, ratios), converged, slow


def has_converged(values: tuple[float, ...], tol: float) -> tuple[bool, bool]:
    """Tell whether plain iterations gain less than `tol` and little more in the limit; and whether they slow down."""
    if len(values) < 2:
        return False, False
    gain = values[-1] - values[-2]
    before = values[-2] - values[-3] if len(values) > 2 else 0.0
    # with one gain only, the ratio is anyone's guess: 0.999
    ratio = gain / before if before > 0 else 0.999 if len(values) < 3 else 1.0
    return _settled(gain, ratio, values[-1], tol), ratio > SWIFT and gain > ROUNDING * abs(values[-1])


def _settled(gain: float, ratio: float, value: float, tol: float) -> bool:
    """Tell whether a gain, and the geometric series of gains that it begins, are small."""
    if tol == 0:
        return False
    if gain <= ROUNDING * abs(value):
        return True
    return gain < tol and ratio < 1 and gain * ratio < REST * tol * (1 - ratio)
