"""A fit that was killed goes on from its checkpoint, to the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

import residmix as rm
from residmix.persistence import load

SCRIPT = """
import os, signal, sys, warnings
import numpy as np
import residmix as rm
import residmix.checkpoint as checkpoint
warnings.simplefilter("ignore")
rng = np.random.default_rng(3)
X = rng.normal(size=(600, 3)) + 2 * rng.integers(0, 3, size=(600, 1))
M = rng.normal(size=(600, 2))
save, written = checkpoint.save, [0]
def save_then_die(journal, path):
    save(journal, path)
    written[0] += 1
    if written[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = save_then_die
if sys.argv[1] == "mixture":
    model = rm.GaussianMixture(3, n_init=2, max_iter=30, checkpoint=sys.argv[2], random_state=1).fit(X)
else:
    options = dict(estimation="joint", gating="metadata", max_iter=20, random_state=1)
    model = rm.ResidualMixture(3, checkpoint=sys.argv[2], **options).fit(X, metadata=M)
for array in (model.weights_, model.means_, model.covariances_):
    sys.stdout.buffer.write(np.ascontiguousarray(array).tobytes())
"""


def fit_in_a_process(kind, path, die_after):
    return subprocess.run([sys.executable, "-c", SCRIPT, kind, str(path), str(die_after)], capture_output=True)


@pytest.mark.parametrize("kind", ["mixture", "joint"])
def test_a_killed_fit_resumed_has_the_bits_of_one_that_was_not(kind, tmp_path):
    whole = fit_in_a_process(kind, tmp_path / "whole.ckpt", 0)
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "fit.ckpt"
    assert fit_in_a_process(kind, path, 7).returncode == -signal.SIGKILL
    assert load(path).running.iteration == 7
    assert fit_in_a_process(kind, path, 6).returncode == -signal.SIGKILL
    assert load(path).running is None or load(path).running.iteration != 7
    resumed = fit_in_a_process(kind, path, 0)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout
    assert len(whole.stdout) > 100
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_fit_is_refused(rng_X, tmp_path):
    path = tmp_path / "fit.ckpt"
    stopped = pytest.MonkeyPatch()
    with stopped.context() as patch:
        patch.setattr("residmix.checkpoint.Path.unlink", lambda *_, **__: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rm.GaussianMixture(2, max_iter=2, checkpoint=path, random_state=0).fit(rng_X)
    assert path.exists()
    with pytest.raises(ValueError, match="belongs to another fit"):
        rm.GaussianMixture(3, max_iter=2, checkpoint=path, random_state=0).fit(rng_X)
    with pytest.raises(ValueError, match="belongs to another fit"):
        rm.GaussianMixture(2, max_iter=2, checkpoint=path, random_state=0).fit(rng_X[:-1])


@pytest.fixture
def rng_X():
    return np.random.default_rng(0).normal(size=(200, 2))


def test_a_checkpoint_changes_no_bit_and_leaves_no_file(rng_X, tmp_path):
    plain = rm.GaussianMixture(2, n_init=2, tol=1e-3, random_state=0).fit(rng_X)
    kept = rm.GaussianMixture(2, n_init=2, tol=1e-3, random_state=0, checkpoint=tmp_path / "x.ckpt").fit(rng_X)
    assert np.array_equal(plain.means_, kept.means_)
    assert list(tmp_path.iterdir()) == []
