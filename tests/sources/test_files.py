"""Files as tables: the same rows and the same bits as in memory, in little memory."""

from __future__ import annotations

import itertools
import operator
import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

import residmix as rm
from residmix.design.fit import fit_design
from residmix.rows.rows import fold
from residmix.sources import as_table
from residmix.sources.array import MemoryTable
from residmix.sources.files import find_files
from residmix.sources.stream import recut

FORMULA = "C(site) * age + bs(age, df=4)"


@pytest.fixture
def frame(rng):
    n = 2500
    return pd.DataFrame(
        {
            "a": rng.normal(size=n) * 1e3,
            "b": rng.normal(size=n),
            "count": rng.integers(0, 50, size=n),
            "age": rng.uniform(20, 80, size=n),
            "site": rng.choice(["london", "oslo", "turin"], size=n),
            "w": rng.uniform(0.5, 2, size=n),
        }
    )


def write_parquet(frame, folder):
    cuts = [0, 700, 701, 1900, 2500]
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        parquet.write_table(
            pa.Table.from_pandas(frame[low:high]), folder / f"part-{i}.parquet", row_group_size=300 + 90 * i
        )
    return folder


def write_stream(frame, folder):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with pa.OSFile(str(folder / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=333)
    return folder / "x.arrow"


def write_feather(frame, folder):
    feather.write_feather(frame, folder / "x.feather", chunksize=444)
    return folder / "x.feather"


def write_csv(frame, folder):
    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), folder / "x.csv")
    return str(folder / "*.csv")


def batches_of(frame, folder):
    return lambda: (frame[low : low + 600] for low in range(0, len(frame), 600))


WRITERS = [write_parquet, write_stream, write_feather, write_csv, batches_of]


def sums(block):
    """All that a block holds, in one order-sensitive sum."""
    row = np.concatenate([block.X, block.design, block.weight[:, None]], axis=1)
    return row.T @ row


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("batch_rows", [None, 97, 10_000])
def test_every_source_folds_to_the_bits_of_the_array(write, batch_rows, frame, tmp_path, monkeypatch):
    where = write(frame, tmp_path)
    if callable(where):
        table = as_table(where)
        table.batch_rows = batch_rows
    else:
        table = rm.scan(where, batch_rows=batch_rows)
    results = []
    for source, threads in ((as_table(frame), "1"), (as_table(frame), "2"), (table, "1"), (table, "2")):
        monkeypatch.setenv("RESIDMIX_NUM_THREADS", threads)
        design = fit_design(lambda s=source: s.chunks(("site", "age")), formula=FORMULA)
        features = source.feature_names(exclude=("site", "age", "w"))
        rows = source.rows(features, design=design, weight="w", block_rows=128)
        assert rows.n_rows == 2500
        assert features == ("a", "b", "count")
        results.append(fold(rows, sums, operator.add).tobytes())
    assert len(set(results)) == 1


def test_npy_files_are_mapped_and_equal_the_array(rng, tmp_path):
    X, weight = rng.normal(size=(1000, 4)), rng.uniform(size=1000)
    metadata = rng.normal(size=(1000, 2))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "part-1.npy", X[:123])
    np.save(tmp_path / "part-2.npy", X[123:])
    results = []
    for source in (X, rm.scan(tmp_path / "x.npy"), rm.scan(tmp_path / "part-*.npy", batch_rows=77)):
        table = as_table(source, metadata=metadata)
        design = fit_design(table.chunks)
        rows = table.rows(("x3", "x1"), design=design, weight=weight, block_rows=64)
        results.append(fold(rows, sums, operator.add).tobytes())
        assert np.array_equal(rows.take(np.array([1, 500])).X, X[[1, 500]][:, [3, 1]])
    assert len(set(results)) == 1
    mapped = rm.scan(tmp_path / "x.npy")
    assert isinstance(mapped, MemoryTable)
    assert isinstance(mapped.X.base, np.memmap)
    assert rm.scan(tmp_path / "x.npy", columns=["x2"]).columns == ("x2",)
    assert rm.scan(tmp_path / "part-*.npy", columns=["x2"]).rows().n_features == 1


def test_float32_files_stay_float32(rng, tmp_path):
    X = rng.normal(size=(100, 2)).astype(np.float32)
    parquet.write_table(pa.table({"a": X[:, 0], "b": X[:, 1]}), tmp_path / "x.parquet")
    rows = rm.scan(tmp_path / "x.parquet").rows(block_rows=32)
    assert rows.dtype == np.float32
    assert np.array_equal(np.concatenate(list(rows.map(lambda block: block.X))), X)


def test_only_the_columns_in_use_are_read(frame, tmp_path):
    table = rm.scan(write_parquet(frame, tmp_path), columns=["b", "age", "site"])
    assert table.columns == ("b", "age", "site")
    (piece, *_) = table.pieces(("age",), 100)
    assert piece.columns == ("age",)
    assert table.feature_names(exclude=("age",)) == ("b",)


def test_row_labels_that_pandas_wrote_are_no_feature(frame, tmp_path):
    frame.index = frame.index[::-1] * 2
    frame.to_parquet(tmp_path / "x.parquet")
    assert rm.scan(tmp_path / "x.parquet").columns == tuple(frame.columns)


def test_rows_can_be_read_from_the_middle(frame, tmp_path):
    for write in (write_parquet, write_stream, write_feather, write_csv):
        table = rm.scan(write(frame, tmp_path))
        for low, high in ((0, 1), (650, 1950), (2499, 2500)):
            got = [value for piece in table.pieces(("b",), 100, low, high) for value in piece.X["b"]]
            assert np.array_equal(got, frame["b"][low:high])
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_table_of_files_is_a_picklable_description(frame, tmp_path):
    table = rm.scan(write_parquet(frame, tmp_path))
    text = pickle.dumps(table)
    assert len(text) < 20_000
    assert pickle.loads(text).n_rows == table.n_rows


def test_csv_types_are_settled_over_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr("residmix.sources.files.csv._CSV_BYTES", 64)
    lines = ["k,v,site"] + [f"{i},{i},u" for i in range(40)] + ["40,,"] + [f"{i},{i + 0.5},v" for i in range(41, 60)]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    table = rm.scan(tmp_path / "x.csv")
    assert table.n_rows == 60
    assert table.numeric_columns == ("k", "v")
    values = np.concatenate([piece.matrix(("k", "v"))[0] for piece in table.pieces(None, 1)])
    assert np.array_equal(values[:, 0], np.arange(60))
    assert np.isnan(values[40, 1]) and values[59, 1] == 59.5
    (tmp_path / "y.tsv").write_text("a\tb\n1\t2\n")
    assert rm.scan(tmp_path / "y.tsv").columns == ("a", "b")


def test_a_folder_is_searched_and_bookkeeping_is_passed_over(frame, tmp_path):
    (tmp_path / "deep").mkdir()
    write_parquet(frame, tmp_path / "deep")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_metadata.parquet").touch()
    (tmp_path / ".hidden.parquet").touch()
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in find_files(tmp_path)] == [f"part-{i}.parquet" for i in range(4)]
    assert rm.scan(tmp_path).n_rows == 2500
    listed = rm.scan([tmp_path / "deep" / "part-1.parquet", tmp_path / "deep" / "part-0.parquet"])
    assert listed.n_rows == 701


def test_what_cannot_be_scanned_is_named(frame, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        rm.scan(tmp_path / "nothing-*.parquet")
    with pytest.raises(FileNotFoundError, match=r"has no file with one of the endings .parquet"):
        rm.scan(tmp_path)
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(ValueError, match=r"must end in .parquet"):
        rm.scan(tmp_path / "x.xlsx")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OSError, match=r"can't read .*bad.parquet"):
        rm.scan(tmp_path / "bad.parquet")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(OSError, match=r"flat.npy.*shape \(3,\)"):
        rm.scan(tmp_path / "flat.npy")
    parquet.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty.parquet.* has no rows"):
        rm.scan(tmp_path / "empty.parquet")
    for name in ("bad.parquet", "flat.npy"):
        (tmp_path / name).unlink()
    np.save(tmp_path / "x.npy", np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"several kinds \(.npy, .parquet\)"):
        rm.scan(tmp_path)
    path = write_csv(frame, tmp_path)
    with pytest.raises(ValueError, match=r"unknown column 'aeg' in .*x.csv - did you mean 'age'"):
        rm.scan(path, columns=["aeg"])
    with pytest.raises(ValueError, match="batch_rows must be at least 1"):
        rm.scan(path, batch_rows=0)


def test_files_that_differ_are_named_with_the_column(tmp_path):
    parquet.write_table(pa.table({"a": [1.0], "site": ["u"]}), tmp_path / "1.parquet")
    parquet.write_table(pa.table({"a": [1.0]}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"2.parquet' has no column 'site', but '.*1.parquet' has"):
        rm.scan(tmp_path)
    assert rm.scan(tmp_path, columns=["a"]).n_rows == 2
    parquet.write_table(pa.table({"a": ["1.0"], "site": ["u"]}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"column 'a' holds String in '.*2.parquet' but Float64"):
        rm.scan(tmp_path)
    encoded = pa.table({"a": [1.0], "site": pa.array(["u"]).dictionary_encode()})
    parquet.write_table(encoded, tmp_path / "2.parquet")
    assert rm.scan(tmp_path).n_rows == 2


def test_a_value_that_is_no_number_is_named_by_its_row_in_the_whole(frame, tmp_path):
    frame.loc[1900, "b"] = np.nan
    rows = rm.scan(write_parquet(frame, tmp_path), batch_rows=256).rows(("a", "b"), block_rows=64)
    with pytest.raises(ValueError, match="NaN: row 1900, column 'b'"):
        list(rows.map(lambda block: None))


def test_a_file_that_breaks_or_shrinks_between_passes_is_named(frame, tmp_path):
    table = rm.scan(write_parquet(frame, tmp_path))
    rows = table.rows(("a", "b"))
    parquet.write_table(pa.table({"a": [1.0], "b": [2.0]}), tmp_path / "part-2.parquet")
    with pytest.raises(OSError, match=r"part-2.parquet"):
        list(rows.map(lambda block: None))
    (tmp_path / "part-1.parquet").unlink()
    with pytest.raises(OSError, match=r"part-1.parquet"):
        list(rows.map(lambda block: None))


@pytest.mark.parametrize(("values", "text"), [([1.0, -1.0], "row 1 has -1.0"), ([0.0, 0.0], "is 0 for every row")])
def test_a_weight_column_is_looked_at_before_the_fit(values, text, tmp_path):
    parquet.write_table(pa.table({"a": [1.0, 2.0], "w": values}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=text):
        rm.scan(tmp_path).rows(("a",), weight="w")


@pytest.mark.slow
def test_memory_stays_at_a_few_batches(tmp_path):
    """64 MB of rows in four row groups are folded with less than 48 MB on top of what importing takes."""
    rng = np.random.default_rng(0)
    table = pa.table({f"x{j}": rng.normal(size=500_000) for j in range(16)})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=125_000)
    code = """
import operator, re, sys
import residmix as rm
def total(block):
    return block.X.sum(axis=0)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
if sys.argv[2] == "stream":
    rows = rm.scan(sys.argv[1]).rows(block_rows=4096)
    next(iter(rows.map(total)))
    before = peak()
    rows.fold(total, operator.add)
else:
    import pyarrow.parquet as pq
    next(iter(rm.scan(sys.argv[1]).rows(block_rows=4096).map(total)))
    before = peak()
    whole = pq.read_table(sys.argv[1])
print(peak() - before)
"""
    grown = {}
    for way in ("stream", "whole"):
        environment = {**os.environ, "RESIDMIX_NUM_THREADS": "2"}
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "x.parquet"), way],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        grown[way] = float(run.stdout)
    assert grown["stream"] < 48, grown
    assert grown["whole"] > 80, grown  # the control: the file as a whole does show


def test_recut_gives_runs_of_one_length(rng):
    X = rng.normal(size=(50, 2))
    for cuts in ([0, 50], [0, 1, 2, 49, 50], [0, 7, 14, 14, 50]):
        pieces = (MemoryTable(X[low:high]) for low, high in itertools.pairwise(cuts))
        runs = [np.concatenate([piece.X for piece in run]) for run in recut(pieces, 7)]
        assert [len(run) for run in runs] == [7] * 7 + [1]
        assert np.array_equal(np.concatenate(runs), X)


def test_a_scanned_table_says_what_it_holds(tmp_path):
    for part in range(2):
        pd.DataFrame({"x": [1.0, 2.0], "site": ["A", "B"]}).to_parquet(tmp_path / f"{part}.parquet")
    assert repr(rm.scan(tmp_path)) == "<4 rows x 2 columns in 2 files: x, site>"
