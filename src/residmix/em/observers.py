"""Progress in the terminal: iteration and log-likelihood, or rows so far; rows per second, time left."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, Self

from residmix.em.loop import EMState
from residmix.rows.progress import a_line, duration

__all__ = ["ALIKE", "FitProgress", "Progress"]


# Two numbers of passes of which one is told.
ALIKE = 1.3

# Visits to all rows after EM has ended: they look for components on a few equal rows.
AFTER = 1


class FitProgress:
    """A callback of `run_em` and a context: shows iteration, log-likelihood, pace and time left in a `Line`.

    How many iterations there will be is known if `tol` is 0. Else a rehearsal may tell; without one, `max_iter` alone
    says how many there can be at most.

    Parameters
    ----------
    n_rows : int
        Rows of a pass.
    tol, max_iter
        Of the fit.
    then : callable, optional
        The next callback; its result is returned.
    quiet, clock
        As in `Line`.

    Attributes
    ----------
    rehearse : callable or None
        Takes the state after the first iteration; returns the least and the most passes that are to come, and whether
        these are all, or None if it can't tell.
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
        self.rehearse: Callable[[EMState[Any]], tuple[int, int, bool] | None] | None = None

    def __enter__(self) -> Self:
        self._within = a_line(quiet=self._quiet, clock=self._clock)
        self._line, self._course = self._within.__enter__()
        self.shown = self._line.shown
        self._began = self._clock()
        self._passes = 0
        self._expected: tuple[int, int, bool] | None = None
        return self

    def __exit__(self, *raised: Any) -> None:
        self._within.__exit__(*raised)

    def __call__(self, state: EMState[Any]) -> Any:
        self._passes += 1
        if self.shown:
            now = self._clock()
            if self._passes == 1:
                pace = now - self._began
                if self.rehearse is not None:
                    self._expect(state)
                # a first pass may compile, or fill a cache: the others are timed without it
                self._began = self._clock()
            else:
                pace = (now - self._began) / (self._passes - 1)
            self._line.show(lambda: self._text(state, pace, now), now)
        return None if self._then is None else self._then(state)

    def _expect(self, state: EMState[Any]) -> None:
        assert self.rehearse is not None
        if (found := self.rehearse(state)) is not None:
            low, high, ended = found
            self._expected = state.iteration + low, state.iteration + high, ended

    def _text(self, state: EMState[Any], pace: float, now: float) -> str:
        rows = self._n_rows / pace if pace > 0 else math.inf
        seen = f"iteration {state.iteration}, log-likelihood {state.log_likelihood:.6f} per row, {rows:,.0f} rows/s"
        if self._passes == 1 and self._expected is not None:
            return seen  # the next one is at hand, and tells the pace of the others
        how, *passes = self._left(state.iteration)
        seconds, whole = [each * pace for each in passes], True
        if self._course is not None:
            told = [self._course.left(0.0, now, each + AFTER * pace, ends=True) for each in seconds]
            seconds, whole = [each for each, _ in told], all(all_of_it for _, all_of_it in told)
        when = " to ".join(dict.fromkeys(map(duration, seconds)))
        return f"{seen}, {how} {when} left{'' if whole else ' of this step'}"

    def _left(self, iteration: int) -> tuple[str, int] | tuple[str, int, int]:
        """Return how sure the number of passes to come is, and it; or the least and the most of them."""
        at_most = max(0, self._max_iter - iteration)
        if self._tol == 0:
            return "about", at_most
        low, high, ended = self._expected or (0, 0, False)
        if high <= iteration:
            return "at most", at_most
        if not ended:
            return "more than", high - iteration
        if low <= iteration or high - iteration <= ALIKE * (low - iteration):
            return "about", high - iteration
        return "about", low - iteration, high - iteration


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
