"""A long fit tells how far it is; a short one, or one without a terminal, says nothing."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import residmix.rows.progress
from residmix import Eraser, GaussianMixture, Residualizer, ResidualMixture, association
from residmix.em.loop import EMState, run_em
from residmix.em.observers import FitProgress
from residmix.mixture.iteration.step import MixtureEM
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
        live = progress._line._status._live
        assert live.is_started
        raise ZeroDivisionError
    assert not live.is_started


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


def told(monkeypatch, rehearse=None, *, tol=1e-6, max_iter=100, iterations=20, first=7.0, each=3.0) -> list[str]:
    """Lines of a fit whose first pass takes `first` seconds, the others `each`."""
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    clock = Clock(0.0)
    with FitProgress(1000, tol=tol, max_iter=max_iter, clock=clock) as progress:
        progress.rehearse = rehearse
        for i in range(iterations):
            clock.now += each if i else first
            progress(EMState(0, (-1.0,) * (i + 1), i + 1))
    return [line.rpartition(", ")[2] for line in stderr.getvalue().splitlines()]


def test_time_left_is_that_of_the_passes_that_a_rehearsal_took(monkeypatch):
    lines = told(monkeypatch, lambda state: (19, 19, True))
    assert lines[1] == "about 54 s left"  # after two of twenty, though the first took longer
    assert lines[9] == "about 30 s left"
    assert lines[18] == "about 3 s left"
    # two that differ, much or little, until the shorter one would be over
    lines = told(monkeypatch, lambda state: (5, 19, True))
    assert lines[1] == "about 12 s to 54 s left" and lines[6] == "about 39 s left"
    assert told(monkeypatch, lambda state: (17, 19, True))[1] == "about 54 s left"
    # a rehearsal that wasn't ended, and a fit that outlasts it
    assert told(monkeypatch, lambda state: (17, 19, False))[1] == "more than 54 s left"
    assert told(monkeypatch, lambda state: (4, 4, True))[4:6] == ["at most 5 min left", "at most 5 min left"]


def test_without_a_rehearsal_time_left_is_certain_or_a_bound(monkeypatch):
    assert told(monkeypatch, tol=0, max_iter=20)[1] == "about 54 s left"
    assert told(monkeypatch, max_iter=20)[1] == "at most 54 s left"
    assert told(monkeypatch, lambda state: None, max_iter=20)[1] == "at most 54 s left"


@pytest.mark.parametrize("apart", [3.0, 3.5])
def test_after_a_tenth_a_fit_knows_its_passes_within_thirty_percent_and_gives_the_same_bits(apart, monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    centres *= apart / min(np.linalg.norm(centres[i] - centres[j]) for i in range(4) for j in range(i))
    X = rng.normal(size=(300_000, 6)) + centres[rng.integers(4, size=300_000)]
    expected = GaussianMixture(4, random_state=0).fit(X)
    screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    seen, passes, left, moments = [], [0], FitProgress._left, MixtureEM.moments

    def counted(self, *arguments, **options):
        passes[0] += self.rows.n_rows == len(X)
        return moments(self, *arguments, **options)

    def looked(self, iteration):
        seen.append((iteration, left(self, iteration), passes[0]))
        return seen[-1][1]

    monkeypatch.setattr(MixtureEM, "moments", counted)
    monkeypatch.setattr(FitProgress, "_left", looked)
    shown = GaussianMixture(4, random_state=0).fit(X)
    assert np.array_equal(shown.means_, expected.means_) and shown.lower_bounds_ == expected.lower_bounds_
    _, (how, *said), before = next(one for one in seen if one[0] >= 0.1 * shown.n_iter_)
    assert how == "about"
    assert min(abs(one / (passes[0] - before) - 1) for one in said) <= 0.3


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


@pytest.mark.parametrize("first", [0.5, 4.0])
def test_after_a_tenth_of_a_visit_time_left_is_within_thirty_percent_whatever_came_before(first, monkeypatch):
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    clock, rng = Clock(0.0), np.random.default_rng(0)
    seconds = rng.uniform(0.3, 0.7, 100)  # of 50 in all, uneven as disks are
    seconds[0] += first  # loops are compiled
    with RowProgress(10_000, clock=clock) as progress:
        for each in seconds:
            clock.now += each
            progress(100)
    lines, left = stderr.getvalue().splitlines(), seconds.sum() - seconds.cumsum()
    for row in np.flatnonzero(seconds.cumsum() >= 0.1 * seconds.sum())[:70]:
        said = float(lines[row].rpartition("about ")[2].split()[0])
        assert abs(said - left[row]) <= 0.3 * left[row], lines[row]


def test_visits_to_rows_tell_how_far_they_have_come(monkeypatch):
    stderr = screen(monkeypatch, io.StringIO())
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    with RowProgress(100, clock=Clock(3.0)) as progress:
        for _ in range(6):
            progress(25)
    lines = stderr.getvalue().splitlines()
    # nothing tells the pace at first; each call takes 3 s; a second visit begins after 100 rows
    assert lines[0] == "25 of 100 rows"
    assert lines[1] == "50 of 100 rows, 8 rows/s, about 6 s left"
    assert lines[3].startswith("100 of 100 rows") and lines[3].endswith("about 0 s left")
    assert lines[4:] == lines[:2]


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
    association(rng.normal(size=(50, 2)), rng.normal(size=50), n_permutations=19)
    with RowProgress(100, clock=Clock(3.0)) as progress:
        for _ in range(4):
            progress(25)
    assert stderr.getvalue() == ""
