"""The stages of a command on one line of progress, and the time left of all of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

__all__ = ["Course", "current", "on_course"]

# Seconds of guesses that count as if they had come true: a first moment says little of a machine's pace.
PRIOR = 0.5

_CURRENT: list[Course] = []


class Course:
    """What is left of a command.

    Each stage has a guess of its seconds on some machine. Guesses needn't be right, only in proportion: how much slower
    this machine is follows from the stages so far, and at first from what is known before, :math:`s_0`.

    .. math:: \\text{left} = \\text{left of this stage} + s \\sum_{\\text{later}} g_i, \\qquad
        s = \\frac{\\text{seconds so far} + s_0 P}{\\text{guesses of what they were for} + P}

    Parameters
    ----------
    stages : dict of name -> seconds, or None
        In order; None if nobody can guess before it's under way.
    line : Line
        What all stages show their progress in.
    lone : bool
        Whether a stage without a guess is one run of EM, so that a rehearsal tells when it ends.
    silent : container of str
        Stages of many small parts, whose own lines would only flicker.
    slowness : float
        How many times slower than the one of the guesses this machine seems to be before the first stage.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        stages: Mapping[str, float | None],
        line: Any,
        *,
        lone: bool = False,
        silent: Container[str] = (),
        slowness: float = 1.0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._stages, self._order, self.line, self._clock = dict(stages), list(stages), line, clock
        self._name = next(iter(stages), "")
        self._first: tuple[float, float] | None = None
        self._spent, self._guessed = PRIOR * slowness, PRIOR
        self._lone, self._silent = lone, silent

    def begin(self, name: str) -> None:
        """Begin a stage; the one before it is over."""
        now = self._clock()
        if (guess := self._stages.get(self._name)) is not None and self._first is not None:
            self._spent += now - self._first[0]
            self._guessed += guess * (1 - self._first[1])
        self._name, self._first = name, None

    @property
    def silent(self) -> bool:
        """Whether this stage shows no line of its own."""
        return self._name in self._silent

    def expect(self, name: str, seconds: float) -> None:
        """Change the guess of a later stage."""
        self._stages[name] = seconds

    def left(self, share: float, now: float, of_this: float | None = None, *, ends: bool = False) -> tuple[float, bool]:
        """Return the seconds left, and whether of the whole command or of a part of this stage only.

        Parameters
        ----------
        share : float
            Of this stage that is done.
        now : float
        of_this : float, optional
            Seconds left of it. Default: what the guess says, and the pace so far.
        ends : bool
            Whether what is told of is a run of EM.
        """
        guess = self._stages.get(self._name)
        spent, guessed = self._spent, self._guessed
        slowness = spent / guessed
        if guess is not None:
            # what came before the first sign of progress, such as loops that were compiled, tells nothing of the pace
            began, before = self._first = self._first or (now, share)
            elapsed, done = now - began, guess * (share - before)
            if of_this is None and spent + elapsed <= PRIOR:
                return 0.0, False  # nothing tells this machine's pace yet
            if of_this is None:
                of_this = (PRIOR * slowness + elapsed) / (PRIOR + done) * guess * (1 - share)
            slowness = (spent + elapsed) / (guessed + done)
        later = self._order[self._order.index(self._name) + 1 :] if self._name in self._order else []
        guesses = [self._stages[name] for name in later]
        if (guess is None and not (ends and self._lone)) or None in guesses:
            return of_this or 0.0, False
        return (of_this or 0.0) + slowness * sum(filter(None, guesses)), True


def current() -> Course | None:
    """Return the course that this process is on, if any."""
    return _CURRENT[-1] if _CURRENT else None


@contextmanager
def on_course(stages: Mapping[str, float | None], line: Any, **options: Any) -> Iterator[Course]:
    """Let all lines of progress be those of one command."""
    course = Course(stages, line, **options)
    _CURRENT.append(course)
    try:
        yield course
    finally:
        _CURRENT.remove(course)
