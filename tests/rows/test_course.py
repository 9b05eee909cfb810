"""Time left of a whole command: guesses need proportions only, and what is unknown isn't told."""

import io

import numpy as np
import pytest
from pyarrow.parquet import ParquetWriter

import residmix.cli.shared.stages
import residmix.rows.progress
from residmix import Residualizer
from residmix.cli.shared.stages import LOADED, under_way
from residmix.em.loop import EMState
from residmix.em.observers import AFTER, FitProgress
from residmix.rows.course import Course, current, on_course
from residmix.rows.progress import Line, RowProgress


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def listened(monkeypatch) -> io.StringIO:
    """Return what will be told on standard error."""
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    monkeypatch.setattr(residmix.rows.progress, "PATIENCE", 0.0)
    return file


@pytest.mark.parametrize("slow", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("warm", [0.0, 2.0])
def test_after_a_tenth_the_time_left_of_all_stages_is_within_thirty_percent_on_any_machine(slow, warm):
    """Guesses are off by a quarter either way, the machine is slower or faster, and loops are compiled first."""
    clock, rng = Clock(), np.random.default_rng(0)
    guesses = {"reading": 40.0, "writing": 30.0, "measuring": 20.0, "drawing": 10.0}
    true = {name: guess * slow * rng.uniform(0.8, 1.25) for name, guess in guesses.items()}
    course = Course(guesses, None, clock=clock)
    clock.now, told = warm, []
    for name, seconds in true.items():
        course.begin(name)
        for share in np.linspace(0.01, 1, 100):
            clock.now += seconds / 100
            told.append((clock.now, *course.left(share, clock.now)))
    ended = clock.now
    for now, left, whole in told:
        if 0.1 * (ended - warm) <= now - warm <= 0.9 * (ended - warm):
            assert whole
            assert abs(left - (ended - now)) <= 0.3 * (ended - now)


@pytest.mark.parametrize("known", [True, False])
def test_how_slow_a_machine_is_may_be_known_before_the_first_stage(known):
    """Of a machine four times as slow, what is told after two seconds is within a quarter only if that is known."""
    clock = Clock()
    course = Course({"reading": 1.0, "drawing": 9.0}, None, clock=clock, slowness=4.0 if known else 1.0)
    course.begin("reading")
    course.left(0.0, clock.now)
    clock.now += 0.6
    left, whole = course.left(0.15, clock.now)
    assert whole
    assert (abs(left - 39.4) < 0.25 * 39.4) == known


@pytest.mark.parametrize(("seconds", "slowness"), [(0.0, 1.0), (2 * LOADED, 2.0)])
def test_the_time_in_which_modules_are_loaded_tells_how_slow_a_machine_is(monkeypatch, seconds, slowness):
    monkeypatch.setattr(residmix.cli.shared.stages, "process_time", lambda: 3.0 + seconds)
    with under_way({"reading": 0.0, "drawing": 5.0}, quiet=True, began=3.0) as course:
        course.begin("reading")
        assert course.left(0.0, 0.0, of_this=0.0) == (pytest.approx(5.0 * slowness), True)


def test_before_a_stage_that_nobody_can_guess_only_the_time_of_the_step_is_told(monkeypatch):
    stderr = listened(monkeypatch)
    clock = Clock()
    with on_course({"reading": 10.0, "fitting": None, "drawing": 5.0}, Line(clock=clock), clock=clock) as course:
        with RowProgress(100, clock=clock) as progress:
            for _ in range(10):
                clock.now += 1.0
                progress(10)
        course.begin("fitting")
        with RowProgress(100, clock=clock) as progress:
            clock.now += 1.0
            progress(50)
            clock.now += 1.0
            progress(25)
    lines = stderr.getvalue().splitlines()
    assert lines[4].endswith("about 5 s left of this step")
    assert lines[-1].endswith("about 1 s left of this step")


@pytest.mark.parametrize("lone", [True, False])
def test_a_rehearsed_fit_knows_the_whole_if_it_is_the_only_one(monkeypatch, lone):
    stderr = listened(monkeypatch)
    clock = Clock()
    with on_course({"fitting": None, "drawing": 5.0}, Line(clock=clock), lone=lone, clock=clock), FitProgress(
        1000, tol=1e-6, max_iter=100, clock=clock
    ) as progress:  # fmt: skip
        progress.rehearse = lambda state: (9, 9, True)
        for i in range(3):
            clock.now += 2.0
            progress(EMState(0, (-1.0,) * (i + 1), i + 1))
    first, second, _ = stderr.getvalue().splitlines()
    assert "left" not in first  # a first pass tells nothing of the others' pace
    left = (8 + AFTER) * 2 + (5 if lone else 0)
    assert second.endswith(f"about {left} s left" if lone else f"about {left} s left of this step")


def test_there_is_one_line_at_a_time_and_none_in_a_silent_stage(monkeypatch):
    stderr = listened(monkeypatch)
    with on_course({"measuring": 1.0, "drawing": 1.0}, Line(), silent=("drawing",)) as course:
        with RowProgress(2, unit="%") as outer:
            with RowProgress(7) as inner:
                inner(7)
            outer(1)
        course.begin("drawing")
        with RowProgress(5) as other:
            other(5)
    assert [line.split(",")[0] for line in stderr.getvalue().splitlines()] == ["50%"]
    assert current() is None


def test_rows_count_when_they_are_written_not_when_they_are_computed(tmp_path, monkeypatch, rng):
    listened(monkeypatch)
    X, M = rng.normal(size=(400_000, 8)), rng.normal(size=400_000)
    model = Residualizer().fit(X[:1000], metadata=M[:1000])
    written, counted, write, count = [0], [0.0], ParquetWriter.write_table, RowProgress.__call__

    def writes(self, table, *arguments, **options):
        write(self, table, *arguments, **options)
        written[0] += len(table)

    def counts(self, n_rows):
        counted[0] += n_rows
        assert counted[0] == written[0]
        count(self, n_rows)

    monkeypatch.setattr(ParquetWriter, "write_table", writes)
    monkeypatch.setattr(RowProgress, "__call__", counts)
    model.transform(X, metadata=M, out=tmp_path / "out.parquet")
    assert counted[0] == len(X)
