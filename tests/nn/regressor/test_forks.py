"""A forked process has lost torch's threads: it is told what to do instead of waiting for ever."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from multiprocessing import get_context
import numpy as np
from residmix.nn import MDNRegressor
rng = np.random.default_rng(0)
X = rng.normal(size=(60, 2))
y = X[:, 0] + rng.normal(size=60)

def fitted():
    return MDNRegressor(n_components=1, n_members=1, hidden=(4,), max_epochs=2, random_state=0).fit(X, y)

def fit(_):
    try:
        return fitted().predict(X)
    except RuntimeError as error:
        return str(error)

def predict(_):
    try:
        return model.predict(X)
    except RuntimeError as error:
        return str(error)

if __name__ == "__main__":
    with get_context("fork").Pool(1) as pool:  # torch is imported, but hasn't been used
        early = pool.map(fit, [0])[0]
    model = fitted()
    assert (early == model.predict(X)).all()
    with get_context("fork").Pool(1) as pool:
        for work in (fit, predict):
            print(pool.map(work, [0])[0])
    with get_context("spawn").Pool(1) as pool:
        assert (pool.map(fit, [0])[0] == model.predict(X)).all()
"""


@pytest.mark.slow
def test_after_a_network_was_used_forked_processes_are_told_to_spawn_and_spawned_ones_work(tmp_path):
    (tmp_path / "work.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "work.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("this process was forked from one that had used torch")
        assert "get_context('spawn')" in line
