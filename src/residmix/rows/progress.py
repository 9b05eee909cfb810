"""A progress line on the terminal while rows are read."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from residmix.rows.block import Block
from residmix.rows.course import Course, current
from residmix.rows.rows import ObservedRows, Rows

__all__ = ["PATIENCE", "Line", "RowProgress", "a_line", "duration", "left", "observed", "watched"]

# What takes less than this says nothing.
PATIENCE = 2.0

# A share of a visit that tells nothing of the others' pace: several threads end their first blocks at once.
EARLY = 0.02

# Whether progress is shown; a terminal can show one line that moves.
_SHOWING = Lock()


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
        """Clear the line, so that others can write; it may be shown again at once."""
        if self._status is not None:
            self._status.stop()
            self._status, self._last = None, -math.inf


@contextmanager
def a_line(*, quiet: bool = False, clock: Callable[[], float] = perf_counter) -> Iterator[tuple[Line, Course | None]]:
    """Give a line to show progress in; on a `Course` it's the one of the whole command.

    There's one at a time: what goes on within something that shows its progress is silent.
    """
    course = current()
    quiet = quiet or (course is not None and course.silent) or not _SHOWING.acquire(blocking=False)
    try:
        course = None if quiet else course
        line = Line(quiet=quiet, clock=clock) if course is None else course.line
        try:
            yield line, course
        finally:
            line.stop()
    finally:
        if not quiet:
            _SHOWING.release()


class RowProgress:
    """A context for one visit to all rows, or several: shows in a `Line` how many have been seen, pace and time left.

    Call it with a number of rows whenever so many more have been seen, from any thread. Pace is that since the first of
    these calls: what came before it, such as loops that were compiled, isn't what the others wait for.

    Parameters
    ----------
    n_rows : float
        Rows of a visit, or whatever is counted.
    quiet, clock
        As in `Line`.
    unit : str
        What it's called. "%": what is counted is work, all of which costs the same; its share is shown.
    """

    def __init__(
        self, n_rows: float, *, quiet: bool = False, clock: Callable[[], float] = perf_counter, unit: str = "rows"
    ) -> None:
        self._n_rows, self._quiet, self._clock, self._unit = n_rows, quiet, clock, unit
        self._lock = Lock()

    def __enter__(self) -> Self:
        self._within = a_line(quiet=self._quiet, clock=self._clock)
        self._line, self._course = self._within.__enter__()
        self._began = self._clock()
        self._begin()
        self.shown = self._line.shown
        return self

    def __exit__(self, *raised: Any) -> None:
        self._within.__exit__(*raised)

    def _begin(self) -> None:
        self._seen = 0.0
        self._first: tuple[float, float] | None = None

    def __call__(self, n_rows: float) -> None:
        if not (self.shown and n_rows):
            return
        with self._lock:
            now = self._clock()
            self._seen += n_rows
            self._line.show(lambda: self._text(now), now)
            self._first = self._first or (now, n_rows)
            if self._seen >= self._n_rows:  # the next visit begins
                self._begin()

    def observe(self, block: Block, each: float = 1.0) -> list[Any]:
        """Count the rows of a block that has been visited; nothing is kept of it."""
        self(each * block.n_rows)
        return []

    def _text(self, now: float) -> str:
        share, done = self._seen / self._n_rows, self._unit == "%"
        seen = f"{share:.0%}" if done else f"{self._seen:,.0f} of {self._n_rows:,.0f} {self._unit}"
        began, before = (self._began, 0.0) if done else self._first or (now, self._seen)
        pace = (self._seen - before) / max(now - began, 1e-9)
        known = pace > 0 and share >= EARLY
        of_this = (self._n_rows - self._seen) / pace if known else None
        if self._course is None:
            when = "" if of_this is None else f", about {duration(of_this)} left"
        else:
            when = left(*self._course.left(share, now, None if done else of_this))
        return seen + (f", {pace:,.0f} {self._unit}/s" if known and not done else "") + when


@contextmanager
def watched(rows: Rows, *, quiet: bool = False) -> Iterator[Rows]:
    """Show how far visits to `rows` have come, where that can be shown; the rows to visit are those it gives."""
    with RowProgress(rows.n_rows, quiet=quiet) as progress:
        yield observed(rows, progress)


def observed(rows: Rows, progress: RowProgress, each: float = 1.0) -> Rows:
    """Return rows whose visits are counted, each row as so much, if that's shown to anybody."""
    # from a cluster nothing is heard before the end
    return _CountedRows(rows, partial(progress.observe, each=each)) if progress.shown and rows.local else rows


class _CountedRows(ObservedRows):
    """Rows that are counted when they are visited, also where only some are looked for."""

    def take(self, index: NDArray[np.integer[Any]]) -> Block:
        return Rows.take(self, index)


def left(seconds: float, whole: bool, how: str = "about") -> str:
    """Return how a time left on a course is told; nothing if nothing is known of it."""
    if whole:
        return f", {how} {duration(seconds)} left"
    return f", {how} {duration(seconds)} left of this step" if seconds > 0 else ""


def duration(seconds: float) -> str:
    """Return a time in words; below ten seconds to half of one, since a second is a third of three.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.1, 3.4, 9.6, 63.2, 400.0)]
    ['0 s', '3.5 s', '9.5 s', '63 s', '7 min']
    """
    if seconds < 10:
        return f"{round(2 * seconds) / 2:g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
