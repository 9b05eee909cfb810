"""scikit-learn's callbacks hear of every start and iteration, can ask for the model so far, and can stop it."""

from __future__ import annotations

import importlib.util
import sys
import warnings

import numpy as np
import pytest

import residmix as rm
import residmix.em.callbacks

pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks since 1.9")
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.exceptions import ConvergenceWarning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Recorder:
    """Writes down what it hears; stops after `most` iterations."""

    def __init__(self, most=None):
        self.most, self.events, self.models = most, [], []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.events.append(("begin", context.task_name))
        self.X = X

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(("end", context.task_name))
        if context.task_name == "iteration" and fitted_estimator is not None:
            self.models.append(fitted_estimator)
        return self.most is not None and context.task_name == "iteration" and len(self.models) >= self.most


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    return rng.normal(size=(500, 2)) + 2 * rng.integers(0, 2, size=(500, 1))


@pytest.fixture(params=[rm.GaussianMixture, rm.ResidualMixture])
def model(request):
    return request.param(2, tol=0, max_iter=4, random_state=0)


def test_every_task_begins_and_ends_inside_its_own(model, X):
    recorder = Recorder()
    model.set_params(n_init=2).set_callbacks(recorder).fit(X)
    start = [("begin", "start"), *[("begin", "iteration"), ("end", "iteration")] * 4, ("end", "start")]
    assert recorder.events == [
        ("setup", "fit"), ("begin", "fit"), *start, *start, ("end", "fit"), ("teardown", "fit")
    ]  # fmt: skip
    assert recorder.X is X


def test_the_pass_that_finds_convergence_is_an_empty_task(model, X):
    recorder = Recorder()
    model.set_params(tol=1e-3, max_iter=200).set_callbacks(recorder).fit(X)
    assert model.converged_
    assert len(recorder.models) == model.n_iter_
    assert recorder.events.count(("begin", "iteration")) == recorder.events.count(("end", "iteration"))
    assert recorder.events.count(("end", "iteration")) == model.n_iter_ + 1


def test_a_callback_sees_the_model_after_each_iteration(model, X):
    recorder = Recorder()
    model.set_callbacks(recorder).fit(X)
    for done, seen in enumerate(recorder.models, start=1):
        shorter = clone(model).set_callbacks().set_params(max_iter=done).fit(X)
        assert seen is not model
        assert seen.n_iter_ == done
        assert np.array_equal(seen.means_, shorter.means_)
        assert np.array_equal(seen.score_samples(X), shorter.score_samples(X))


def test_a_callback_may_stop_a_fit(model, X):
    stopped = clone(model).set_callbacks(Recorder(most=2)).fit(X)
    assert stopped.n_iter_ == 2
    assert np.array_equal(stopped.means_, model.set_params(max_iter=2).fit(X).means_)


def test_callbacks_change_no_bit_and_are_not_saved(model, X, tmp_path):
    plain = clone(model).fit(X)
    heard = model.set_callbacks(Recorder()).fit(X)
    assert np.array_equal(plain.means_, heard.means_)
    again = rm.load(rm.save(heard, tmp_path / "model.rmx") or tmp_path / "model.rmx")
    assert np.array_equal(again.means_, heard.means_)
    assert not hasattr(again, "_skl_callbacks")


def test_teardown_comes_also_when_the_fit_fails(model, X):
    recorder = Recorder()
    with pytest.raises(ValueError, match="n_components"):
        model.set_params(n_components=501).set_callbacks(recorder).fit(X)
    model.set_params(n_components=2, reg_covar=0.0).set_callbacks(recorder)
    with pytest.raises(ValueError):
        model.fit(np.ones((50, 2)))
    assert recorder.events.count(("setup", "fit")) == recorder.events.count(("teardown", "fit"))


@pytest.mark.filterwarnings("ignore:there is no metadata")  # the monitor wants a target, which mixtures ignore
def test_scikit_learns_own_callbacks_work(model, X, capsys):
    monitor = ScoringMonitor(scoring=log_density)
    model.set_callbacks(ProgressBar(), monitor).fit(X, np.zeros(len(X)))
    bar = capsys.readouterr()
    assert type(model).__name__ in bar.out + bar.err
    (log,) = monitor.get_logs("all")
    scores = [row["log_density"] for row in log.data if row["task_name"] == "iteration"]
    np.testing.assert_allclose(scores, model.lower_bounds_, rtol=1e-12)


def log_density(model, X, y):
    return {"log_density": model.score(X)}


def test_our_own_line_is_silent_when_callbacks_tell(model, X, monkeypatch, capsys):
    monkeypatch.setattr("residmix.rows.progress.PATIENCE", 0.0)
    monkeypatch.setenv("RESIDMIX_PROGRESS", "1")
    clone(model).fit(X)
    assert "iteration 1" in capsys.readouterr().err
    model.set_callbacks(Recorder()).fit(X)
    assert capsys.readouterr().err == ""


def test_a_warning_points_at_the_line_that_called_fit(model, X):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.set_params(tol=1e-9, max_iter=1).fit(X)
    (warning,) = (w for w in caught if issubclass(w.category, ConvergenceWarning))
    assert warning.filename == __file__


def test_without_the_protocol_nothing_is_there_and_nothing_breaks(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location("older_callbacks", residmix.em.callbacks.__file__)
    older = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(older)

    class Model(older.CallbackSupportMixin):
        @older.with_callbacks
        def fit(self):
            tasks = older.FitTasks(self, None, n_starts=1)
            with tasks.start(3) as iterated:
                assert not iterated(None)
            tasks.end()
            return self

    assert not hasattr(Model().fit(), "set_callbacks")
