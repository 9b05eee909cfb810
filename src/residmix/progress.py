"""What long work tells in the terminal: iteration and log-likelihood, or rows so far; rows per second, time left."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from threading import Lock
from time import perf_counter
from typing import Any, Self

from residmix.em import EMState
from residmix.sources.rows import Rows
from residmix.sources.watched import WatchedRows

__all__ = ["FitProgress", "Progress", "RowProgress", "iterations_left", "watched"]

# What takes less than this says nothing.
PATIENCE = 2.0

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


class Line:
    """One line on stderr, from two seconds after it was made until `stop`.

    It shows where stderr is a terminal. The environment variable ``RESIDMIX_PROGRESS`` decides otherwise: 0 means
    never, 1 also where there's no terminal (then as lines, at most one every two seconds).

    Parameters
    ----------
    quiet : bool
        Show nothing, since something else already does.
    clock : callable
        Seconds.
    """

    def __init__(self, *, quiet: bool = False, clock: Callable[[], float] = perf_counter) -> None:
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        wish = os.environ.get("RESIDMIX_PROGRESS", "")
        self.shown = not quiet and wish != "0" and (self._terminal or wish == "1")
        self._last = clock()
        self._status: Any = None

    def show(self, text: Callable[[], str], now: float) -> None:
        """Show ``text()``, if it's time to."""
        if self._status is not None:
            self._status.update(text())
        elif now - self._last >= PATIENCE:
            from rich.console import Console

            console = Console(stderr=True, highlight=False)
            if self._terminal:
                self._status = console.status(text())
                self._status.start()
            else:
                console.print(text(), soft_wrap=True)
                self._last = now

    def stop(self) -> None:
        """Clear the line."""
        if self._status is not None:
            self._status.stop()


class FitProgress:
    """A callback of `run_em` and a context: shows iteration, log-likelihood, pace and time left in a `Line`.

    Parameters
    ----------
    n_rows : int
        Rows of a pass.
    tol, max_iter
        Of the fit, for the time left.
    then : callable, optional
        The callback to go on to; its answer is returned.
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
            f"{rows:,.0f} rows/s, about {_duration(left * pace)} left"
        )


class RowProgress:
    """A context for one visit to all rows, or several: shows in a `Line` how many have been seen, pace and time left.

    Call it with a number of rows whenever so many more have been seen, from any thread.

    Parameters
    ----------
    n_rows : int
        Rows of a visit.
    quiet, clock
        As in `Line`.
    """

    def __init__(self, n_rows: int, *, quiet: bool = False, clock: Callable[[], float] = perf_counter) -> None:
        self._n_rows, self._quiet, self._clock = n_rows, quiet, clock
        self._lock = Lock()

    def __enter__(self) -> Self:
        self._line = Line(quiet=self._quiet, clock=self._clock)
        self._began, self._seen = self._clock(), 0
        self.shown = self._line.shown
        return self

    def __exit__(self, *raised: object) -> None:
        self._line.stop()

    def __call__(self, n_rows: int) -> None:
        with self._lock:
            now = self._clock()
            self._seen += n_rows
            self._line.show(lambda: self._text(now), now)
            if self._seen >= self._n_rows:  # the next visit begins
                self._began, self._seen = now, 0

    def _text(self, now: float) -> str:
        pace = self._seen / max(now - self._began, 1e-9)
        return (
            f"{self._seen:,} of {self._n_rows:,} rows, {pace:,.0f} rows/s, "
            f"about {_duration((self._n_rows - self._seen) / pace)} left"
        )


@contextmanager
def watched(rows: Rows, *, quiet: bool = False) -> Iterator[Rows]:
    """Show how far visits to `rows` have come, where that can be shown; the rows to visit are those it gives."""
    with RowProgress(rows.n_rows, quiet=quiet) as progress:
        # from a cluster nothing is heard before the end
        yield WatchedRows(rows, progress) if progress.shown and rows.local else rows


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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
