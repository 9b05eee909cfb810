"""A fit that was killed goes on from its checkpoint, to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import residmix as rm
from residmix.em.loop import EMState
from residmix.em.runs import run_starts
from residmix.persistence import read, write

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SCRIPT = """
import json, os, signal, sys, warnings
import numpy as np
import residmix as rm
import residmix.em.runs as checkpoint
warnings.simplefilter("ignore")
rng = np.random.default_rng(3)
X = rng.normal(size=(300, 3)) + 2 * rng.integers(0, 3, size=(300, 1))
M = rng.normal(size=(300, 2))
write, written = checkpoint.write, [0]
def save_then_die(journal, path):
    write(journal, path)
    written[0] += 1
    if written[0] == die_after:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write = save_then_die
def fit(kind, path):
    if kind == "mixture":
        return rm.GaussianMixture(3, n_init=2, max_iter=30, checkpoint=path, random_state=1).fit(X)
    options = dict(estimation="joint", gating="metadata") if kind == "joint" else dict(n_init=2)
    options |= dict(tol=0, max_iter=12, random_state=np.random.RandomState(1))
    return rm.ResidualMixture(3, checkpoint=path, **options).fit(X, metadata=M)
# what is asked for comes in lines; each is a process of its own, which has the imports already
for line in sys.stdin:
    kind, path, die_after = json.loads(line)
    child = os.fork()
    if child == 0:
        model = fit(kind, path)
        with open(path + ".found", "wb") as found:
            for array in (model.weights_, model.means_, model.covariances_):
                found.write(np.ascontiguousarray(array).tobytes())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def fit_in_a_process():
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=-1, stdout=-1, text=True) as server:

        def call(kind, path, die_after):
            server.stdin.write(json.dumps([kind, str(path), die_after]) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield call
        server.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork, nor a signal that can't be caught")
@pytest.mark.parametrize("kind", ["mixture", "two-stage", "joint"])
@pytest.mark.slow
def test_a_killed_fit_resumed_has_the_bits_of_one_that_was_not(kind, fit_in_a_process, tmp_path):
    assert fit_in_a_process(kind, tmp_path / "whole.ckpt", 0) == 0
    path = tmp_path / "fit.ckpt"
    assert fit_in_a_process(kind, path, 7) == -signal.SIGKILL
    assert read(path).running.iteration == 7
    assert fit_in_a_process(kind, path, 6) == -signal.SIGKILL
    assert read(path).running is None or read(path).running.iteration != 7
    assert fit_in_a_process(kind, path, 0) == 0
    whole, resumed = tmp_path / "whole.ckpt.found", tmp_path / "fit.ckpt.found"
    assert resumed.read_bytes() == whole.read_bytes() and len(whole.read_bytes()) > 100
    assert sorted(tmp_path.iterdir()) == [resumed, whole]


class Killed(BaseException):
    """The end of a process, as far as a test in it can have one."""


def left_behind(fit, path, monkeypatch, after=2):
    """Run `fit`, which dies when its checkpoint has been written for the third time."""
    written = []

    def save_then_die(journal, where):
        write(journal, where)
        written.append(where)
        if len(written) > after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("residmix.em.runs.write", save_then_die)
        with pytest.raises(Killed):
            fit()
    assert path.exists()


def test_a_checkpoint_of_another_fit_is_refused(rng_X, tmp_path, monkeypatch):
    path = tmp_path / "fit.ckpt"
    model = rm.GaussianMixture(2, max_iter=9, tol=0, checkpoint=path, random_state=0)
    left_behind(lambda: model.fit(rng_X), path, monkeypatch)
    others = [
        (clone(model).set_params(n_components=3), rng_X, None),
        (clone(model).set_params(means_init=rng_X[:2]), rng_X, None),
        (clone(model), rng_X[:-1], None),
        (clone(model), rng_X + 1e-9, None),
        (clone(model), rng_X.astype(np.float32), None),
        (clone(model), rng_X, np.arange(len(rng_X)) % 2),
        (rm.ResidualMixture(2, max_iter=9, tol=0, checkpoint=path, random_state=0), rng_X, None),
    ]
    for other, X, weight in others:
        with pytest.raises(ValueError, match="belongs to another fit"):
            other.fit(X, sample_weight=weight)
    (tmp_path / "damaged.ckpt").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"damaged\.ckpt.* is damaged"):
        clone(model).set_params(checkpoint=tmp_path / "damaged.ckpt").fit(rng_X)
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        clone(model).set_params(checkpoint=tmp_path / "no" / "fit.ckpt").fit(rng_X)
    model.fit(rng_X)  # the one it belongs to goes on
    assert not path.exists()


@pytest.mark.parametrize("kind", ["GaussianMixture", "two-stage", "joint"])
@pytest.mark.parametrize("source", ["memory", "parquet", "batches"])
@pytest.mark.slow
def test_one_number_that_changed_in_any_row_is_noticed_and_unchanged_data_go_on(kind, source, tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    n = 20_000  # several blocks
    frame = pd.DataFrame(rng.normal(size=(n, 3)), columns=["x", "y", "m"])
    frame["x"] += 3 * rng.integers(0, 2, n) + frame["m"]
    path, options = tmp_path / "fit.ckpt", {"tol": 0, "max_iter": 4, "random_state": 0}
    if kind == "GaussianMixture":
        model = rm.GaussianMixture(2, init_params="random_from_data", **options)
    else:
        model = rm.ResidualMixture(2, estimation=kind, init_params="random_from_data", **options)

    def fit(frame, **changed):
        X, M = frame[["x", "y"]].to_numpy(), frame["m"].to_numpy()
        given = {} if kind == "GaussianMixture" else {"metadata": M}
        if source == "parquet":
            frame[["x", "y"]].to_parquet(tmp_path / "x.parquet", row_group_size=7000)
            X = rm.scan(tmp_path / "x.parquet")
        if source == "batches":
            X, given = (lambda: np.array_split(frame[["x", "y", "m"]].to_numpy(), 7)), {}
        return clone(model).set_params(**changed).fit(X, **given)

    expected = fit(frame)
    left_behind(lambda: fit(frame, checkpoint=path), path, monkeypatch)
    columns = ["x", "y"] + (["m"] if kind != "GaussianMixture" or source == "batches" else [])
    for row in (n // 2, n - 1):
        for column in columns:
            changed = frame.copy()
            changed.loc[row, column] += 1e-13
            with pytest.raises(ValueError, match=r"belongs to another fit .* one number that has changed"):
                fit(changed, checkpoint=path)
    resumed = fit(frame, checkpoint=path)
    assert not path.exists()
    assert np.array_equal(resumed.means_, expected.means_)
    assert np.array_equal(resumed.covariances_, expected.covariances_)


@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
@pytest.mark.slow
def test_a_fit_on_a_cluster_goes_on_with_another_client(estimation, tmp_path, monkeypatch):
    Client = pytest.importorskip("distributed", reason="a cluster needs the extra dask").Client
    rng = np.random.default_rng(2)
    site = rng.choice(["a", "b"], 3000)
    frame = pd.DataFrame(rng.normal(size=(3000, 2)), columns=["x", "y"]).assign(site=site)
    frame["x"] += 3 * rng.integers(0, 2, 3000) + (site == "b")
    frame.to_parquet(tmp_path / "x.parquet", row_group_size=400)
    path = tmp_path / "fit.ckpt"

    def fit(**where):
        options = {"formula": "site", "estimation": estimation, "tol": 0, "max_iter": 6, "random_state": 0}
        model = rm.ResidualMixture(2, checkpoint=path, **options).fit(rm.scan(tmp_path / "x.parquet", **where))
        return b"".join(a.tobytes() for a in (model.coef_, model.weights_, model.means_, model.covariances_))

    expected = fit()
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        left_behind(lambda: fit(client=client), path, monkeypatch)
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        assert fit(client=client) == expected
    left_behind(fit, path, monkeypatch)  # begun here, ended there
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        assert fit(client=client) == expected


@pytest.fixture
def rng_X():
    return np.random.default_rng(0).normal(size=(200, 2))


def test_a_checkpoint_changes_no_bit_and_leaves_no_file(rng_X, tmp_path):
    plain = rm.GaussianMixture(2, n_init=2, tol=1e-3, random_state=0).fit(rng_X)
    kept = rm.GaussianMixture(2, n_init=2, tol=1e-3, random_state=0, checkpoint=tmp_path / "x.ckpt").fit(rng_X)
    assert np.array_equal(plain.means_, kept.means_)
    assert list(tmp_path.iterdir()) == []


def test_spare_starts_are_run_as_long_as_those_before_them_do_not_satisfy():
    class Iterations:
        revived: list = []

    def run(i, start, callback):
        return EMState(start, (float(start),))

    found = []

    def starts():
        found.clear()
        for start in (1, 2, 3, 4):
            found.append(start)
            yield start

    def ran(enough):
        spare = lambda i, ended: i >= 2 and max(state.params for state in ended) >= enough  # noqa: E731
        ended = run_starts(Iterations(), starts, run, failure=ValueError, spare=spare)
        # those that aren't run aren't even found
        assert found == [state.params for state, _ in ended]
        return found.copy()

    assert ran(2) == [1, 2]
    assert ran(3) == [1, 2, 3]
    assert ran(9) == [1, 2, 3, 4]


def test_components_lost_in_one_run_are_not_those_of_the_next_nor_after_a_resume(tmp_path):
    class Iterations:
        revived: list = []

    em = Iterations()

    def run(i, start, callback):
        if i == 0 or em.revived:
            em.revived.append([i])
        if stop and i == 1:
            callback(EMState(start, (0.0,)))
            em.revived.append(["lost after what was written"])
            raise KeyboardInterrupt
        return EMState(start, (float(i),))

    options = {"failure": ValueError, "path": tmp_path / "x.ckpt"}
    stop = False
    starts = [np.array([1.0]), np.array([2.0]), np.array([3.0])]
    whole = run_starts(em, lambda: starts, run, **options)
    assert [revived for _, revived in whole] == [[[0]], [], []]
    stop = True
    with pytest.raises(KeyboardInterrupt):
        run_starts(em, lambda: starts, run, **options)
    stop = False
    again = run_starts(em, lambda: starts, run, **options)
    assert [revived for _, revived in again] == [[[0]], [], []]
