"""Every estimator gives the same bits wherever the rows live and however many hands compute."""

from __future__ import annotations

import operator
import os
import signal
import threading
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster
from pyarrow import parquet

import residmix as rm
from residmix.rows.rows import fold
from residmix.sources import as_table

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*converge"),
    # A killed worker leaves sockets of the scheduler's behind, which Python reports when it finds them.
    pytest.mark.filterwarnings(r"ignore:(?s).*socket\.socket:pytest.PytestUnraisableExceptionWarning"),
]
FEATURES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(11)
    n = 30_000
    site = rng.choice(["london", "oslo", "turin"], size=n)
    group = rng.integers(0, 3, size=n)
    X = rng.normal(size=(n, 3)) + 3 * np.eye(3)[group] + (site == "oslo")[:, None]
    return pd.DataFrame(X, columns=FEATURES).assign(site=site, age=rng.uniform(20, 80, size=n))


@pytest.fixture(scope="module")
def folder(frame, tmp_path_factory):
    where = tmp_path_factory.mktemp("parts")
    table = pa.Table.from_pandas(frame)
    parquet.write_table(table.slice(0, 11_001), where / "1.parquet", row_group_size=1700)
    parquet.write_table(table.slice(11_001), where / "2.parquet", row_group_size=4301)
    np.save(where / "x.npy", frame[FEATURES].to_numpy())
    return where


def residual_mixture(**options):
    return rm.ResidualMixture(3, formula="C(site) + age", features=FEATURES, max_iter=4, random_state=0, **options)


def fitted(model, X, **arguments):
    model.fit(X, **arguments)
    return b"".join(
        np.ascontiguousarray(a).tobytes() for a in (model.coef_, model.weights_, model.means_, model.covariances_)
    )


@pytest.mark.parametrize("estimation", ["two-stage", "joint"])
@pytest.mark.slow
def test_residual_mixture_has_the_same_bits_everywhere(estimation, frame, folder, monkeypatch):
    bits = set()
    for threads in ("1", "2"):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        for source in (frame, rm.scan(folder / "*.parquet", batch_rows=3000)):
            bits.add(fitted(residual_mixture(estimation=estimation), source))
    pairs = {"metadata": frame[["site", "age"]]}
    mapped = rm.ResidualMixture(3, formula="C(site) + age", estimation=estimation, max_iter=4, random_state=0)
    bits.add(fitted(mapped, rm.scan(folder / "x.npy"), **pairs))
    assert len(bits) == 1


def test_transform_scores_and_predictions_are_the_same_from_files(frame, folder, tmp_path):
    table = rm.scan(folder / "*.parquet", batch_rows=3000)
    model = residual_mixture().fit(frame)
    for method in ("score_samples", "predict", "predict_proba", "residuals"):
        assert np.array_equal(getattr(model, method)(frame), getattr(model, method)(table)), method
    residualizer = rm.Residualizer("C(site) + age", features=FEATURES).fit(table)
    expected = rm.Residualizer("C(site) + age", features=FEATURES).fit_transform(frame)
    assert np.array_equal(residualizer.transform(table), expected)
    assert np.array_equal(residualizer.fit_transform(table), expected)


@pytest.mark.parametrize("kind", ["parquet", "npy", "batches"])
def test_gaussian_mixture_takes_every_source(kind, frame, folder):
    X = frame[FEATURES].to_numpy()
    source = {
        "parquet": lambda: rm.scan(folder / "*.parquet", columns=FEATURES, batch_rows=3000),
        "npy": lambda: rm.scan(folder / "x.npy"),
        "batches": lambda: lambda: (X[low : low + 1999] for low in range(0, len(X), 1999)),
    }[kind]()
    model = rm.GaussianMixture(3, max_iter=4, random_state=0).fit(X)
    same = rm.GaussianMixture(3, max_iter=4, random_state=0).fit(source)
    assert np.array_equal(model.means_, same.means_)
    assert np.array_equal(model.score_samples(X), same.score_samples(source))
    assert np.array_equal(model.predict(X), same.predict(source))
    with pytest.raises(ValueError, match="X has 2 features, but GaussianMixture is expecting 3"):
        rm.GaussianMixture(3, max_iter=1, random_state=0).fit(X).predict(
            rm.scan(folder / "x.npy", columns=["x0", "x1"])
        )


@pytest.mark.parametrize("block_rows", [37, 1000, 30_000])
def test_any_chunking_agrees_to_twelve_digits(block_rows, frame):
    def total(block):
        return block.X.T @ block.X

    rows = as_table(frame).rows(FEATURES, block_rows=4096)
    expected = fold(rows, total, operator.add)
    np.testing.assert_allclose(fold(rows.with_block_rows(block_rows), total, operator.add), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_bits_of_one_process(frame, folder):
    expected = fitted(residual_mixture(), frame)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        client.wait_for_workers(2, timeout=120)
        victims = list(client.run(os.getpid).values())
        table = rm.scan(folder / "*.parquet", batch_rows=3000, client=client)
        killer = threading.Timer(1.0, os.kill, (victims[0], signal.SIGKILL))
        killer.start()
        assert fitted(residual_mixture(), table) == expected
        killer.join()
        client.wait_for_workers(2, timeout=120)
        assert victims[0] not in client.run(os.getpid).values()
