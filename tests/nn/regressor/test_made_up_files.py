"""A model file may say anything of its network: what it announces takes no memory, only what it holds does."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import residmix as rm
from residmix.nn import MDNRegressor
from residmix.nn.regressor.fitting import Removal, plan_network

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

HUGE = 20_000  # a layer of this width squared takes 1.6 GB


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X, age = rng.normal(size=(60, 3)), rng.normal(size=60)
    model = MDNRegressor(n_components=2, n_members=2, hidden=(4,), max_epochs=2, random_state=0)
    return model.fit(X, X[:, 0] + age, metadata=age)


def saved(model, path, **changed):
    """Write a model whose plan announces something else than its arrays are; its checksum is right."""
    plan = model._plan
    try:
        model._plan = replace(plan, **changed)
        rm.save(model, path)
    finally:
        model._plan = plan
    return path


def peak(call):
    """Return the most memory (bytes) that this process had during a call, beyond what it had before."""
    kept = Path("/proc/self/clear_refs")
    status = Path("/proc/self/status")
    kept.write_text("5")  # the highest mark begins anew
    before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
    call()
    return 1024 * (int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before)


@pytest.mark.parametrize(
    "announced",
    [
        {"hidden": (HUGE, HUGE)},
        {"hidden": (4,) * 100_000},
        {"members": 10**9},
        {"n_components": 10**8},
        {"n_targets": 10**9},
        {"n_targets": HUGE, "covariance": "full", "min_scale": (0.1,) * HUGE},
        {"n_features": 10**8},
        {"covariance": "low-rank", "rank": 10**8},
        {"removal": Removal(10**8, 1)},
        {"removal": Removal(1, 10**8)},
        {"removal": Removal(1, 1, space="feature")},
        {"removal": None},
        {"members": -1},
        {"members": "many"},
        {"hidden": (10**30,)},
    ],
    ids=str,
)
def test_a_network_that_the_file_does_not_hold_takes_no_memory(fitted, announced, tmp_path):
    path = saved(fitted, tmp_path / "made-up", **announced)

    def load():
        with pytest.raises(ValueError, match=r"made-up' is damaged or forged"):
            rm.load(path)

    if sys.platform == "linux":
        assert peak(load) < 64e6
    else:
        load()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
def test_the_control_builds_what_a_plan_announces(fitted):
    assert peak(lambda: plan_network(replace(fitted._plan, hidden=(5000, 5000)))) > 100e6


@pytest.mark.parametrize("space", ["sample", "feature"])
def test_what_files_do_not_hold_is_as_after_a_fit(space, tmp_path):
    rng = np.random.default_rng(1)
    X, age = rng.normal(size=(60, 3)), rng.normal(size=60)
    model = MDNRegressor(n_components=2, n_members=2, hidden=(4,), max_epochs=2, space=space, random_state=0)
    model.fit(X, X[:, 0] + age, metadata=age)
    rm.save(model, tmp_path / "m")
    loaded = rm.load(tmp_path / "m")
    assert not any(tensor.is_meta for tensor in (*loaded.network_.parameters(), *loaded.network_.buffers()))
    for (name, one), (other, two) in zip(model.network_.named_buffers(), loaded.network_.named_buffers(), strict=True):
        assert name == other and torch.equal(one, two)
    given = {"metadata": age} if space == "sample" else {}
    assert np.array_equal(loaded.predict(X, **given), model.predict(X, **given))
    loaded.network_.float().double()  # nothing in it is read-only or shared with the file
