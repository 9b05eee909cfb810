"""Files that are damaged, swapped, gone, or no files: one error that names them."""

from __future__ import annotations

import operator
import os

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import residmix as rm
from residmix.rows.rows import fold


def total(block):
    return block.X.sum(axis=0)


@pytest.fixture
def table(rng):
    columns = {name: rng.normal(size=500) for name in "ab"}
    return pa.table({**columns, "site": ["u", "v"] * 250})


@pytest.fixture
def folder(table, tmp_path):
    for i in range(4):
        parquet.write_table(table, tmp_path / f"part{i}.parquet")
    return tmp_path


@pytest.mark.parametrize("cache_bytes", [0, 10**8])
@pytest.mark.parametrize("what", ["swapped", "gone", "a folder", "touched"])
def test_a_part_that_changes_between_passes_is_named(what, cache_bytes, folder, table):
    rows = rm.scan(folder, cache_bytes=cache_bytes).rows(("a", "b"), block_rows=100)
    for _ in range(3):
        fold(rows, total, operator.add)
    path = folder / "part2.parquet"
    if what == "touched":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    if what == "swapped":  # of the same number of rows
        parquet.write_table(table.set_column(0, "a", pa.array(np.zeros(500))), path)
    elif what == "a folder":
        path.mkdir()
    with pytest.raises(OSError, match=r"part2\.parquet"):
        fold(rows, total, operator.add)
    with pytest.raises(OSError, match=r"part2\.parquet"):
        rows.take(np.array([3]))


def test_a_folder_named_as_a_file_is_read_or_named_never_passed_over(folder, table):
    (folder / "part7.parquet").mkdir()
    for where in (folder, folder / "*.parquet"):
        with pytest.raises(FileNotFoundError, match=r"part7\.parquet'"):
            rm.scan(where)
    parquet.write_table(table, folder / "part7.parquet" / "0.parquet")
    assert rm.scan(folder).n_rows == rm.scan(folder / "*.parquet").n_rows == 2500


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv", "csv.gz", "npy", "feather"])
def test_random_bytes_and_empty_files_are_named(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    rng = np.random.default_rng(0)
    for size in (0, 1, 10, 1000, 100_000):
        path.write_bytes(rng.bytes(size))
        with pytest.raises((OSError, ValueError), match=r"x\.") as raised:
            rm.GaussianMixture().fit(rm.scan(path))
        assert str(path) in str(raised.value)


def test_an_empty_part_among_others_is_named(folder):
    (folder / "part9.parquet").touch()
    with pytest.raises(OSError, match=r"part9\.parquet"):
        rm.scan(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(OSError, match=r"x\.csv' is a pipe, which can't be read several times"):
        rm.scan(tmp_path / "x.csv")
    os.symlink("/dev/null", tmp_path / "y.csv")
    with pytest.raises(OSError, match=r"y\.csv' is a device"):
        rm.scan(tmp_path / "y.csv")
    os.symlink(tmp_path / "nowhere.csv", tmp_path / "z.csv")
    with pytest.raises(OSError, match=r"z\.csv"):
        rm.scan(tmp_path / "z.csv")


def test_a_column_twice_in_a_file_is_named(tmp_path):
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(OSError, match=r"x\.parquet': it has two columns named 'a'; rename or drop one"):
        rm.scan(tmp_path / "x.parquet")


def test_what_pandas_wrote_about_a_file_is_not_needed(table, tmp_path):
    parquet.write_table(table.replace_schema_metadata({b"pandas": b"\xff{broken"}), tmp_path / "x.parquet")
    assert rm.scan(tmp_path / "x.parquet").n_rows == 500
    rm.Residualizer("site").fit(rm.scan(tmp_path / "x.parquet"))


@pytest.mark.parametrize("write", [parquet.write_table, csv.write_csv])
@pytest.mark.parametrize("cache_bytes", [0, 10_000, 10**8])
def test_what_is_kept_has_no_say_in_the_answer(write, cache_bytes, table, tmp_path):
    path = tmp_path / ("x.parquet" if write is parquet.write_table else "x.csv")
    write(table, path)
    model = rm.ResidualMixture(2, formula="site", random_state=0, max_iter=5, tol=0)
    expected = model.fit(table).means_.tobytes()
    assert model.fit(rm.scan(path, cache_bytes=cache_bytes)).means_.tobytes() == expected


def test_mutated_files_are_read_or_named(table, tmp_path):
    """Bytes changed, left out or doubled: an error of one line that names the file, or rows."""
    rng = np.random.default_rng(0)
    parquet.write_table(table, tmp_path / "x.parquet")
    csv.write_csv(table, tmp_path / "x.csv")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    read, told = 0, []
    for ending in ("parquet", "csv", "arrow"):
        path = tmp_path / f"x.{ending}"
        whole = path.read_bytes()
        for _ in range(60):
            text, at = bytearray(whole), int(rng.integers(len(whole)))
            way = rng.integers(3)
            if way == 0:
                text[at] ^= int(rng.integers(1, 256))
            elif way == 1:
                del text[at : at + int(rng.integers(1, 200))]
            else:
                text[at:at] = text[at : at + int(rng.integers(1, 200))]
            path.write_bytes(text)
            try:
                rows = rm.scan(path, columns=["a", "b"]).rows(("a", "b"))
                rows.fold(total, operator.add)
                read += 1
            except (OSError, ValueError) as error:
                told.append(str(error))
    assert read > 20
    assert all("x." in text or "row" in text or "column" in text for text in told), told
