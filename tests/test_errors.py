"""What a fit has to tell stands in the model as well as in its warnings."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import residmix as rm
from residmix.errors import DesignWarning, keeps_notes, noting, unnoted, warn

RNG = np.random.default_rng(0)
X, AGE = RNG.normal(size=(60, 2)), RNG.normal(size=60)


def test_warnings_are_found_by_name_before_anything_else_is_loaded():
    code = "import residmix; print(residmix.errors.DesignWarning.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "DesignWarning\n"


def test_every_warning_of_a_fit_is_a_note_of_the_model():
    twice = np.column_stack([AGE, AGE])
    with pytest.warns(rm.errors.CollinearityWarning) as told:
        model = rm.Residualizer().fit(X, metadata=twice)
    assert [note["message"] for note in model.notes_] == [str(item.message) for item in told]
    assert model.notes_[0]["kind"] == "collinearity"


def test_a_clean_fit_has_no_notes_and_a_second_fit_forgets_those_of_the_first():
    twice = np.column_stack([AGE, AGE])
    model = rm.Residualizer()
    with pytest.warns(rm.errors.CollinearityWarning):
        model.fit(X, metadata=twice)
    assert model.fit(X, metadata=AGE).notes_ == []


def test_filters_silence_warnings_and_leave_notes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rm.Residualizer().fit(X, metadata=np.column_stack([AGE, AGE]))
    assert len(model.notes_) == 1


def test_notes_of_a_fit_inside_a_fit_go_to_both_unless_it_is_kept_to_itself():
    class Inner:
        @keeps_notes
        def fit(self, message="one"):
            warn(message, DesignWarning, rows=3)
            return self

    class Outer:
        @keeps_notes
        def fit(self):
            self.inner = Inner().fit()
            with unnoted():
                self.other = Inner().fit("two")
            return self

    with pytest.warns(DesignWarning, match="one") as told:
        outer = Outer().fit()
    expected = [{"kind": "design", "message": "one", "figures": {"rows": 3}}]
    assert outer.notes_ == outer.inner.notes_ == expected
    assert [note["message"] for note in outer.other.notes_] == ["two"]
    assert len(told) == 1


def test_later_rows_add_to_the_notes():
    class Model:
        @keeps_notes
        def fit(self):
            warn("first", DesignWarning)
            return self

        @keeps_notes
        def partial_fit(self):
            warn("first", DesignWarning)
            warn("second", DesignWarning)
            return self

    with pytest.warns(DesignWarning):
        model = Model().fit().partial_fit()
    assert [note["message"] for note in model.notes_] == ["first", "second"]


def test_notes_outside_a_fit_are_heard_by_whoever_listens():
    with noting() as found, pytest.warns(DesignWarning):
        warn("here", DesignWarning)
    assert [note["message"] for note in found] == ["here"]
