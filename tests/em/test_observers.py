"""A long fit tells how far it is; a short one, or one without a terminal, says nothing."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import residmix.rows.progress
from residmix import Eraser, GaussianMixture, Residualizer, ResidualMixture
from residmix.em.loop import EMState, run_em
from residmix.em.observers import FitProgress, iterations_left
from residmix.rows.progress import RowProgress


class Clock:
    """Time that goes on by `step` seconds whenever it's asked."""

    def __init__(self, step: float) -> None:
        self.step, self.now = step, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(monkeypatch, stream: io.StringIO) -> io.StringIO:
    """Put `stream` in the place of stderr, with nothing chosen in the environment.

    Called in the test's body: what a fixture puts there, pytest's capture replaces before the test runs.
    """
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("RESIDMIX_PROGRESS", raising=False)
    return stream


def halving(step: float, **options) -> EMState:
    """An EM whose gains halve, watched by a clock that goes on by `step` seconds an iteration."""
    with FitProgress(1000, tol=1e-6, max_iter=100, clock=Clock(step), **options) as progress:
        return run_em(lambda gap: (-gap, gap / 2), 1.0, tol=1e-6, max_iter=100, callback=progress)


def test_long_fit_in_a_terminal_shows_iteration_likelihood_pace_and_time_left(monkeypatch):
    terminal = screen(monkeypatch, Terminal())
    halving(3.0)
    text = terminal.getvalue()
    for words in ("iteration ", "log-likelihood -", "rows/s", "left"):
        assert words in text


def test_line_leaves_the_terminal_when_the_fit_raises(monkeypatch):
    screen(monkeypatch, Terminal())
    before = FitProgress(1, tol=0, max_iter=9, clock=Clock(3.0))
    with pytest.raises(ZeroDivisionError), before as progress:
        progress(EMState(0, (-1.0,), 1))
        assert progress._line._status._live.is_started
        raise ZeroDivisionError
    assert not progress._line._status._live.is_started


def test_short_fit_says_nothing(monkeypatch):
    terminal = screen(monkeypatch, Terminal())
    halving(0.001)
    assert terminal.getvalue() == ""


def test_nothing_without_a_terminal(monkeypatch):
    stderr = screen(monkeypatch, io.StringIO())
    halving(3.0)
    assert stderr.getvalue() == ""


def test_environment_has_the_last_word(monkeypatch):
    terminal = screen(monkeypatch, Terminal())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "0")
    halving(3.0)
    assert terminal.getvalue() == ""
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    halving(3.0)
    lines = stderr.getvalue().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("iteration ") and line.endswith("left") for line in lines)


def test_quiet_shows_nothing_but_still_goes_on_to_the_next_callback(monkeypatch):
    terminal = screen(monkeypatch, Terminal())
    seen = []
    state = halving(3.0, quiet=True, then=lambda state: seen.append(state.iteration) or state.iteration == 3)
    assert terminal.getvalue() == ""
    assert seen == [1, 2, 3]
    assert state.iteration == 3


def test_time_left_follows_the_trend_of_the_gains():
    # gains 1/2, 1/4, ..., 2^-10: below 1e-6 at 2^-20, after ten more
    values = tuple(-(0.5**i) for i in range(11))
    assert iterations_left(values, 10, tol=1e-6, max_iter=1000) == 10
    assert iterations_left(values, 10, tol=1e-6, max_iter=12) == 2
    # without a tolerance, or without a trend, max_iter is all we know
    assert iterations_left(values, 10, tol=0, max_iter=30) == 20
    assert iterations_left((-1.0, -0.9, -0.7), 2, tol=1e-6, max_iter=30) == 28
    assert iterations_left((-1.0,), 1, tol=1e-6, max_iter=30) == 29


@pytest.mark.parametrize("model", [GaussianMixture, ResidualMixture])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators_tell(model, monkeypatch):
    X = np.random.default_rng(0).normal(size=(300, 2))
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    model(2, tol=0, max_iter=3, random_state=0).fit(X)
    assert stderr.getvalue() == ""
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    model(2, tol=0, max_iter=3, random_state=0).fit(X)
    told = [line.split(",")[0] for line in stderr.getvalue().splitlines()]
    # a residual mixture residualizes first
    assert [text for text in told if "rows" not in text] == [f"iteration {i}" for i in (1, 2, 3)]


def test_visits_to_rows_tell_how_far_they_have_come(monkeypatch):
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    with RowProgress(100, clock=Clock(3.0)) as progress:
        for _ in range(6):
            progress(25)
    lines = stderr.getvalue().splitlines()
    # made at 3 s, begun at 6 s; each call takes 3 s; a second visit begins after 100 rows
    assert lines[0] == "25 of 100 rows, 8 rows/s, about 9 s left"
    assert lines[3].startswith("100 of 100 rows") and lines[3].endswith("about 0 s left")
    assert lines[4] == lines[0] and len(lines) == 6


@pytest.mark.parametrize("model", [Residualizer(), Residualizer(scale=True), Eraser()])
def test_fit_and_transform_show_their_visits_and_their_results_are_the_same(model, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    X, M = rng.normal(size=(40_000, 4)), rng.normal(size=(40_000, 2))
    metadata = {} if isinstance(model, Eraser) else {"metadata": M}
    expected = model.fit(X, metadata=M).transform(X, **metadata)
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    assert np.array_equal(model.fit(X, metadata=M).transform(X, **metadata), expected)
    lines = stderr.getvalue().splitlines()
    assert sum(line.startswith("40,000 of 40,000 rows") for line in lines) >= 2


def test_a_visit_without_a_terminal_says_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    stderr = screen(monkeypatch, io.StringIO())
    Residualizer().fit(rng.normal(size=(50, 2)), metadata=rng.normal(size=50))
    assert stderr.getvalue() == ""
