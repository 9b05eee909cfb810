"""Progress in the terminal: iteration and log-likelihood, or rows so far; rows per second, time left."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any, Self

from residmix.em.loop import EMState
from residmix.rows.progress import Line, duration

__all__ = ["FitProgress", "Progress", "iterations_left"]


# Gains that the trend is taken over: extrapolated iterations make single ones uneven.
TREND = 6


def iterations_left(values: tuple[float, ...], iteration: int, *, tol: float, max_iter: int) -> int:
    """Return how many iterations are probably to come.

    Gains are taken to shrink by the same factor each time, ``g a^n < tol``, with `a` from the last few of them; there
    are never more than `max_iter` allows.

    Parameters
    ----------
    values : tuple of float
        Log-likelihoods per row so far.
    iteration : int
        Iterations so far.
    """
    at_most = max(0, max_iter - iteration)
    gains = [b - a for a, b in pairwise(values)][-TREND:]
    if tol == 0 or len(gains) < 2 or min(gains[0], gains[-1]) <= 0:
        return at_most
    rate = math.log(gains[-1] / gains[0]) / (len(gains) - 1)
    if rate >= 0:
        return at_most
    return min(at_most, max(1, math.ceil(math.log(tol / gains[-1]) / rate)))


class FitProgress:
    """A callback of `run_em` and a context: shows iteration, log-likelihood, pace and time left in a `Line`.

    Parameters
    ----------
    n_rows : int
        Rows of a pass.
    tol, max_iter
        Of the fit, for the time left.
    then : callable, optional
        The next callback; its result is returned.
    quiet, clock
        As in `Line`.
    """

    def __init__(
        self,
        n_rows: int,
        *,
        tol: float,
        max_iter: int,
        then: Callable[[EMState[Any]], Any] | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._n_rows, self._tol, self._max_iter = n_rows, tol, max_iter
        self._then, self._quiet, self._clock = then, quiet, clock

    def __enter__(self) -> Self:
        self._line = Line(quiet=self._quiet, clock=self._clock)
        self._began = self._clock()
        self._passes = 0
        return self

    def __exit__(self, *raised: object) -> None:
        self._line.stop()

    def __call__(self, state: EMState[Any]) -> Any:
        self._passes += 1
        if self._line.shown:
            now = self._clock()
            self._line.show(lambda: self._text(state, now), now)
        return None if self._then is None else self._then(state)

    def _text(self, state: EMState[Any], now: float) -> str:
        pace = (now - self._began) / self._passes
        left = iterations_left(state.log_likelihoods, state.iteration, tol=self._tol, max_iter=self._max_iter)
        rows = self._n_rows / pace if pace > 0 else math.inf
        return (
            f"iteration {state.iteration}, log-likelihood {state.log_likelihood:.6f} per row, "
            f"{rows:,.0f} rows/s, about {duration(left * pace)} left"
        )


class Progress:
    """What `verbose` prints: scikit-learn's lines."""

    def __init__(self, verbose: int, interval: int, run: int) -> None:
        self._verbose, self._interval = verbose, interval
        self._began = self._last = perf_counter()
        if verbose:
            print(f"Initialization {run}")

    def __call__(self, state: EMState[Any]) -> None:
        if not self._verbose or state.iteration % self._interval:
            return
        line = f"  Iteration {state.iteration}"
        if self._verbose > 1:
            now, values = perf_counter(), state.log_likelihoods
            change = values[-1] - values[-2] if len(values) > 1 else math.inf
            line += f"\t time lapse {now - self._last:.5f}s\t ll change {change:.5f}"
            self._last = now
        print(line)

    def end(self, state: EMState[Any]) -> None:
        """Print how a run ended."""
        if not self._verbose:
            return
        line = f"Initialization {'converged' if state.converged else 'did not converge'}."
        if self._verbose > 1:
            line += f" time lapse {perf_counter() - self._began:.5f}s\t lower bound {state.log_likelihood:.5f}."
        print(line)
