"""Workers that compute otherwise are named before the first pass; a cluster without any says what it waits for."""

from __future__ import annotations

import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster

import residmix as rm
from residmix.errors import ResidmixWarning
from residmix.sources import workers
from residmix.sources.dask import ClusterRows


@pytest.fixture
def folder(tmp_path, rng):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(100, 2)))
    return tmp_path


class Cluster:
    """Stands for a client: its workers answer what they are told to."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def run(self, function, *, workers, on_error):
        self.asked += workers
        return {worker: {**function(), **self.answers[worker]} for worker in workers}


def test_equal_workers_are_asked_once_and_raise_nothing():
    cluster = Cluster(one={}, two={})
    for _ in range(3):
        workers.check_workers(cluster, ["one", "two"])
    assert cluster.asked == ["one", "two"]
    cluster.answers["three"] = {}
    workers.check_workers(cluster, ["one", "two", "three"])
    assert cluster.asked[2:] == ["three"]


@pytest.mark.parametrize(
    ("version", "text"), [("0.0.1", "has residmix 0.0.1, this process"), (None, "has no residmix")]
)
def test_another_version_of_the_package_is_refused(version, text):
    with pytest.raises(RuntimeError, match=rf"worker two of the cluster {text}.*install the same"):
        workers.check_workers(Cluster(one={}, two={"residmix": version}), ["one", "two"])


@pytest.mark.parametrize(("name", "value"), [("numpy", "1.0.0"), ("vector width", "1024 bits")])
def test_what_may_change_bits_is_warned_of(name, value):
    with pytest.warns(ResidmixWarning, match=rf"worker two of the cluster: {name} is {value}, but .* in this process"):
        workers.check_workers(Cluster(one={}, two={name: value}), ["one", "two"])


def test_what_is_asked_needs_no_package_where_it_is_answered():
    code = "import pickle, sys; sys.modules['residmix'] = None; print(pickle.loads(sys.stdin.buffer.read())())"
    asked = cloudpickle.dumps(workers.environment)
    answer = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, check=True)
    assert "'vector width': " in answer.stdout.decode()
    assert answer.stdout.decode().strip() == str(workers.environment())


def test_a_cluster_without_workers_says_so_and_goes_on_when_one_comes(folder):
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        rows = rm.scan(folder, client=client).rows()
        assert isinstance(rows, ClusterRows)
        threading.Timer(0.3, cluster.scale, (1,)).start()
        with pytest.warns(ResidmixWarning, match=r"the cluster at .* has no workers, so this waits until there is one"):
            total = rows.fold(lambda block: block.X.sum(axis=0), lambda one, two: one + two)
    assert np.allclose(total, sum(np.load(path).sum(axis=0) for path in folder.iterdir()))
