"""A progress line on the terminal while rows are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any, Self

from residmix.rows.block import Block
from residmix.rows.rows import ObservedRows, Rows

__all__ = ["PATIENCE", "Line", "RowProgress", "duration", "watched"]

# What takes less than this says nothing.
PATIENCE = 2.0

# A share of a visit that tells nothing of the others' pace: several threads end their first blocks at once.
EARLY = 0.02


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
        What it's called.
    """

    def __init__(
        self, n_rows: float, *, quiet: bool = False, clock: Callable[[], float] = perf_counter, unit: str = "rows"
    ) -> None:
        self._n_rows, self._quiet, self._clock, self._unit = n_rows, quiet, clock, unit
        self._lock = Lock()

    def __enter__(self) -> Self:
        self._line = Line(quiet=self._quiet, clock=self._clock)
        self._begin()
        self.shown = self._line.shown
        return self

    def __exit__(self, *raised: object) -> None:
        self._line.stop()

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

    def observe(self, block: Block) -> list[Any]:
        """Count the rows of a block that has been visited; nothing is kept of it."""
        self(block.n_rows)
        return []

    def _text(self, now: float) -> str:
        seen = f"{self._seen:,.0f} of {self._n_rows:,.0f} {self._unit}"
        if self._first is None or self._seen < EARLY * self._n_rows:
            return seen
        began, before = self._first
        pace = (self._seen - before) / max(now - began, 1e-9)
        left = duration((self._n_rows - self._seen) / pace)
        return f"{seen}, {pace:,.0f} {self._unit}/s, about {left} left"


@contextmanager
def watched(rows: Rows, *, quiet: bool = False) -> Iterator[Rows]:
    """Show how far visits to `rows` have come, where that can be shown; the rows to visit are those it gives."""
    with RowProgress(rows.n_rows, quiet=quiet) as progress:
        # from a cluster nothing is heard before the end
        yield ObservedRows(rows, progress.observe) if progress.shown and rows.local else rows


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
