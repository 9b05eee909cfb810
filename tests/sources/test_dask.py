"""A cluster gives the bits of one process, whatever is lost on the way."""

from __future__ import annotations

import gc
import operator
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import cloudpickle
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client, LocalCluster
from pyarrow import parquet

import residmix as rm
from residmix.design.fit import fit_design
from residmix.rows.rows import fold
from residmix.sources import as_table
from residmix.sources.dask import ClusterRows
from residmix.sources.output import collect

FORMULA = "C(site) * age"

# A killed worker leaves sockets of the scheduler's behind, which Python reports when it finds them.
pytestmark = pytest.mark.filterwarnings(r"ignore:(?s).*socket\.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(7)
    n = 3000
    return pd.DataFrame(
        {
            "a": rng.normal(size=n) * 10.0 ** rng.uniform(-6, 6, size=n),
            "b": rng.normal(size=n),
            "age": rng.uniform(20, 80, size=n),
            "site": rng.choice(["london", "oslo", "turin"], size=n),
            "w": rng.uniform(0.5, 2, size=n),
        }
    )


@pytest.fixture(scope="module")
def folder(frame, tmp_path_factory):
    where = tmp_path_factory.mktemp("parts")
    table = pa.Table.from_pandas(frame)
    parquet.write_table(table.slice(0, 1100), where / "1.parquet", row_group_size=170)
    parquet.write_table(table.slice(1100), where / "2.parquet", row_group_size=430)
    return where


@pytest.fixture
def threads():
    """A cluster inside this process: quick, for all that doesn't need processes to die."""
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        yield client


@contextmanager
def two_workers():
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import tests
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
    gc.collect()


@pytest.fixture(scope="module")
def processes():
    with two_workers() as client:
        yield client


def sums(block):
    row = np.concatenate([block.X, block.design, block.weight[:, None]], axis=1)
    return row.T @ row


def sums_until_killed(victim, reached, block):
    """Sums, but for one process, which says that it has begun and never ends."""
    if os.getpid() == victim:
        reached.touch()
        threading.Event().wait()
    return sums(block)


def kill_once(victim, reached):
    while not reached.exists():
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)


def first_column(block):
    return block.X[:, 0]


def rows_of(table, block_rows=8):
    design = fit_design(lambda: table.chunks(("site", "age")), formula=FORMULA)
    features = table.feature_names(["a", "b"], exclude=("site", "age", "w"))
    return table.rows(features, design=design, weight="w", block_rows=block_rows)


def sources(frame, folder, client):
    X, metadata = frame[["a", "b"]], frame[["site", "age", "w"]]
    ddf = dd.from_pandas(frame, npartitions=7, sort=False)
    chunks = ((1, 999, 1500, 500), (1, 1))
    named = da.from_array(X.to_numpy(), chunks=chunks)
    yield "files", rm.scan(folder, client=client, batch_rows=100)
    yield "files beside memory", as_table(rm.scan(folder, columns=["a", "b"], client=client), metadata=metadata)
    yield "data frame", as_table(ddf)
    yield "two data frames", as_table(ddf[["a", "b"]], metadata=dd.from_pandas(metadata, npartitions=4, sort=False))
    yield "data frame beside memory", as_table(ddf[["a", "b"]], metadata=metadata)
    yield "array beside a data frame", as_table(named, metadata=ddf[["site", "age", "w"]])


@pytest.mark.slow
def test_every_collection_folds_to_the_bits_of_one_process(frame, folder, threads):
    expected = fold(rows_of(as_table(frame)), sums, operator.add)
    for name, table in sources(frame, folder, threads):
        names = ["x0", "x1"] if "array" in name else ["a", "b"]
        design = fit_design(lambda t=table: t.chunks(("site", "age")), formula=FORMULA)
        rows = table.rows(names, design=design, weight="w", block_rows=8)
        assert isinstance(rows, ClusterRows), name
        assert fold(rows, sums, operator.add).tobytes() == expected.tobytes(), name
        assert np.array_equal(collect(rows, first_column), frame["a"]), name
        assert np.array_equal(rows.take(np.array([2, 1500])).X[:, 1], frame["b"].iloc[[2, 1500]]), name


def test_without_a_client_collections_are_read_in_this_process(frame):
    ddf = dd.from_pandas(frame, npartitions=7, sort=False)
    tables = (
        as_table(ddf),
        as_table(ddf[["a", "b"]], metadata=ddf[["site", "age", "w"]].repartition(npartitions=3)),
    )
    expected = fold(rows_of(as_table(frame)), sums, operator.add).tobytes()
    for table in tables:
        rows = rows_of(table)
        assert rows.local
        assert fold(rows, sums, operator.add).tobytes() == expected


def test_a_metadata_array_may_be_a_dask_array(rng, threads):
    X, m = rng.normal(size=(500, 3)), rng.normal(size=500)
    table = as_table(da.from_array(X, chunks=(90, 2)), metadata=da.from_array(m, chunks=140))
    assert table.metadata_columns == ("m0",)
    assert np.array_equal(np.concatenate(list(table.chunks()))[:, 0], m)
    design = fit_design(table.chunks)
    assert np.array_equal(collect(table.rows(design=design, block_rows=64), design_column)[:, 0], m)


def design_column(block):
    return block.design


def test_weights_in_memory_travel_with_their_rows(frame, folder, threads):
    table = rm.scan(folder, client=threads, batch_rows=100)
    weighted = table.rows(("a",), weight=frame["w"].to_numpy(), block_rows=16)
    assert np.array_equal(collect(weighted, weight_of), frame["w"])


def weight_of(block):
    return block.weight


def own_process(folder, block):
    """Return this process, once there are two of them at work; after a minute's waiting, anyhow."""
    (folder / str(os.getpid())).touch()
    for _ in range(6000):
        if len(list(folder.iterdir())) >= 2:
            break
        time.sleep(0.01)
    return {os.getpid()}


@pytest.mark.parametrize("inline", [1 << 18, 0])
def test_every_worker_takes_part(inline, folder, processes, monkeypatch, tmp_path):
    monkeypatch.setattr("residmix.sources.dask.INLINE_BYTES", inline)
    processes.wait_for_workers(2, timeout=120)
    rows = rm.scan(folder, client=processes, batch_rows=100, columns=["a", "b"]).rows(block_rows=10)
    assert fold(rows, partial(own_process, tmp_path), operator.or_) == set(processes.run(os.getpid).values())


def test_a_task_carries_only_the_files_that_it_reads(folder, threads):
    files = rm.scan(folder, client=threads).files
    offsets = np.concatenate([[0], np.cumsum([part.n_rows for part in files.parts])])
    for start in range(0, 3000, 271):
        for stop in (start + 1, min(start + 900, 3000)):
            part, before = files.covering(start, stop)
            assert before == offsets[offsets <= start].max()
            assert before + part.n_rows == offsets[offsets >= stop].min()
            values = np.concatenate([piece.matrix(("a",))[0] for piece in files.pieces(("a",), 77, start, stop)])
            again = [p.matrix(("a",))[0] for p in part.pieces(("a",), 50, start - before, stop - before)]
            assert np.array_equal(np.concatenate(again), values)


def test_a_killed_worker_changes_nothing(frame, folder, processes, tmp_path):
    expected = fold(rows_of(as_table(frame)), sums, operator.add).tobytes()
    rows = rows_of(rm.scan(folder, client=processes, batch_rows=100))
    assert fold(rows, sums, operator.add).tobytes() == expected
    processes.wait_for_workers(2, timeout=120)
    victim, reached = next(iter(processes.run(os.getpid).values())), tmp_path / "reached"
    killer = threading.Thread(target=kill_once, args=(victim, reached), daemon=True)
    killer.start()
    # what the victim has begun never ends there, so the fold can only end because another worker does it again
    assert fold(rows, partial(sums_until_killed, victim, reached), operator.add).tobytes() == expected
    assert reached.exists()
    processes.wait_for_workers(2, timeout=120)
    assert victim not in processes.run(os.getpid).values()


def unheard_of():
    raise ImportError("no such module here")


class Foreign:
    """Something that can't be unpickled."""

    def __call__(self, block):
        return 0.0

    def __reduce__(self):
        return unheard_of, ()


def test_what_workers_cannot_import_is_an_error_not_a_wait(folder, processes):
    rows = rm.scan(folder, client=processes, columns=["a", "b"]).rows(block_rows=100)
    with pytest.raises(ImportError, match="no such module here"):
        fold(rows, Foreign(), operator.add)


def deadly(block):
    if block.start <= 1700 < block.start + block.n_rows:
        os.kill(os.getpid(), signal.SIGKILL)
    return block.X.sum()


@pytest.mark.slow
def test_rows_that_kill_every_worker_are_named(folder):
    # a worker that dies while it starts takes its nanny with it, so that no other test may need this cluster
    with two_workers() as client:
        rows = rm.scan(folder, client=client, batch_rows=500, columns=["a", "b"]).rows(block_rows=100)
        with pytest.raises(RuntimeError, match=r"died repeatedly on rows 1\d00 to \d+ \(.*2\.parquet"):
            fold(rows, deadly, operator.add)


def test_a_file_that_cannot_be_read_is_named(frame, tmp_path, threads):
    for i in range(3):
        frame[["a", "b"]][1000 * i : 1000 * (i + 1)].to_parquet(tmp_path / f"{i}.parquet")
    rows = rm.scan(tmp_path, client=threads, batch_rows=100).rows(block_rows=10)
    (tmp_path / "1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OSError, match=r"can't read .*1\.parquet"):
        fold(rows, total, operator.add)


def total(block):
    return block.X.sum()


def broken(partition, partition_info=None):
    if partition_info is not None and partition_info["number"] == 3:
        raise RuntimeError("the archive is offline")
    return partition


def test_a_partition_that_cannot_be_computed_is_named(frame, threads):
    ddf = dd.from_pandas(frame[["a", "b"]], npartitions=6, sort=False)
    poisoned = ddf.map_partitions(broken, meta=ddf._meta)
    table = as_table(ddf)
    table._X.data = poisoned
    with pytest.raises(RuntimeError, match="the archive is offline") as caught:
        fold(table.rows(block_rows=10), total, operator.add)
    assert caught.value.__notes__ == ["partition 3 of the Dask data frame X can't be read"]


def test_a_partition_that_this_process_cannot_compute_is_named(frame):
    ddf = dd.from_pandas(frame[["a", "b"]], npartitions=6, sort=False)
    table = as_table(ddf)
    table._X.data = ddf.map_partitions(broken, meta=ddf._meta)
    with pytest.raises(RuntimeError, match="the archive is offline") as caught:
        fold(table.rows(block_rows=10), total, operator.add)
    assert "partition 3 of the Dask data frame X can't be read" in caught.value.__notes__


def test_a_nan_on_the_cluster_is_named_by_its_row(frame, threads):
    holed = frame[["a", "b"]].copy()
    holed.loc[2345, "b"] = np.nan
    rows = as_table(dd.from_pandas(holed, npartitions=5, sort=False)).rows(block_rows=16)
    with pytest.raises(ValueError, match="NaN: row 2345, column 'b'"):
        fold(rows, total, operator.add)


def test_collections_that_do_not_fit_are_refused(frame, threads):
    ddf = dd.from_pandas(frame, npartitions=3, sort=False)
    with pytest.raises(ValueError, match="X has 3000 rows but metadata has 2999"):
        as_table(ddf, metadata=frame[:2999])
    with pytest.raises(TypeError, match="metadata is a Dask collection, but X isn't"):
        as_table(frame, metadata=ddf)
    with pytest.raises(ValueError, match="Expected 2D array, got 1D Dask array"):
        as_table(da.ones(3))
    with pytest.raises(TypeError, match="is a Dask Series"):
        as_table(ddf["a"])
    with pytest.raises(ValueError, match="has no rows"):
        as_table(ddf[ddf["age"] > 1000])
