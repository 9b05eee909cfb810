"""CSV text as people write it: separators, line ends, compressed, from standard input; parsed once."""

from __future__ import annotations

import gzip
import io
import os
import sys

import numpy as np
import pytest

import residmix as rm
from residmix.sources.files import csv as room

LINES = ["a,b,site"] + [f"{i / 7:.17g},{i},{'uvw'[i % 3]}" for i in range(300)]


def values(table, names=("a", "b")):
    return np.concatenate([piece.matrix(names)[0] for piece in table.pieces(names, 1 << 20)])


def text_of(end="\n"):
    return (end.join(LINES) + end).encode()


@pytest.fixture
def expected():
    return np.array([[i / 7, i] for i in range(300)])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_any_line_end_is_one(end, cache_bytes, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_CSV_BYTES", 256)
    (tmp_path / "x.csv").write_bytes(text_of(end))
    table = rm.scan(tmp_path / "x.csv", cache_bytes=cache_bytes)
    assert table.n_rows == 300
    assert np.array_equal(values(table), expected)


@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_text_is_parsed_once_whatever_is_kept_in_memory(cache_bytes, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_CSV_BYTES", 256)
    (tmp_path / "x.csv").write_bytes(text_of())
    table = rm.scan(tmp_path / "x.csv", cache_bytes=cache_bytes)

    def parse(*arguments, **options):
        raise AssertionError("parsed again")

    monkeypatch.setattr(room.Csv, "parse", parse)
    for _ in range(2):
        assert np.array_equal(values(table), expected)
    assert np.array_equal(values(table, ("b",)), expected[:, 1:])
    assert (table.in_memory() is not None) == (cache_bytes > 0)


def test_a_full_disk_only_costs_time(expected, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_bytes(text_of())

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("residmix.sources.files.kept.tempfile.TemporaryFile", full)
    assert np.array_equal(values(rm.scan(tmp_path / "x.csv", cache_bytes=0)), expected)


def test_nothing_is_left_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_bytes(text_of())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = rm.scan(tmp_path / "data" / "x.csv", cache_bytes=0)
    values(table)
    assert os.listdir(tmp_path) == ["data"]  # also while it is in use, so also after a crash


def test_compressed_text_and_standard_input_hold_the_same_rows(expected, tmp_path, monkeypatch):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text_of()))
    assert np.array_equal(values(rm.scan(tmp_path / "x.csv.gz")), expected)
    assert np.array_equal(values(rm.scan(tmp_path / "*.csv.gz", cache_bytes=0)), expected)
    (tmp_path / "short.csv.gz").write_bytes(gzip.compress(text_of())[:-20])
    with pytest.raises(OSError, match=r"can't read .*short\.csv\.gz"):
        rm.scan(tmp_path / "short.csv.gz")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text_of())))
    table = rm.scan("-")
    assert table.n_rows == 300
    assert table.paths == ()
    model = rm.Residualizer("site").fit(table)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(OSError, match="can't read standard input: nothing came"):
        rm.scan("-")
    (tmp_path / "x.csv").write_bytes(text_of())
    assert np.array_equal(model.coef_, rm.Residualizer("site").fit(rm.scan(tmp_path / "x.csv")).coef_)


def test_numbers_are_read_as_they_are_written_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_CSV_BYTES", 64)
    rows = [f"{'uv'[i % 2]};{i % 1000};{i},5" for i in range(50)]
    rows += ["u;3.272,3;1,5", "v;-12.345.678,25;<LOD", "u;12;0,25"]
    (tmp_path / "x.csv").write_text("\n".join(["site;volume;iron", *rows]) + "\n")
    for cache_bytes in (0, 10**8):
        options = {"sep": ";", "decimal": ",", "thousands": ".", "na_values": "<LOD", "cache_bytes": cache_bytes}
        table = rm.scan(tmp_path / "x.csv", **options)
        assert table.numeric_columns == ("volume", "iron")
        got = values(table, ("volume", "iron"))
        assert got[-3:, 0].tolist() == [3272.3, -12345678.25, 12.0]
        assert np.isnan(got[-2, 1]) and got[-1, 1] == 0.25
        # read again from the text, as workers of a cluster do
        again = [piece.matrix(("volume",))[0] for piece in table.parts[0].pieces(("volume",), 100, 0, 53)]
        assert np.array_equal(np.concatenate(again)[:, 0], got[:, 0])
    (tmp_path / "y.csv").write_text('site,volume\nu,"3,272.3"\nv,"1,000"\nu,17\n')
    assert values(rm.scan(tmp_path / "y.csv", thousands=","), ("volume",))[:, 0].tolist() == [3272.3, 1000.0, 17.0]


@pytest.mark.parametrize("cache_bytes", [0, 10**8])
def test_a_column_that_is_text_anywhere_is_text_as_written_everywhere(cache_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_CSV_BYTES", 64)
    rows = [f"{i:03d},{i}" for i in range(100)] + ["<LOD,100"]
    (tmp_path / "x.csv").write_text("\n".join(["code,x", *rows]) + "\n")
    table = rm.scan(tmp_path / "x.csv", cache_bytes=cache_bytes)
    assert table.numeric_columns == ("x",)
    got = [value for chunk in table.chunks(("code",)) for value in chunk["code"].to_pylist()]
    assert got == [f"{i:03d}" for i in range(100)] + ["<LOD"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sep": ";;"}, "sep must be one ASCII character"),
        ({"decimal": ","}, "decimal and the column separator are both ','; set sep="),
        ({"decimal": ",", "thousands": ","}, "decimal and thousands are both"),
        ({"na_values": [1]}, "na_values must be a list of strings"),
        ({"cache_bytes": -1}, "cache_bytes must not be negative"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message, tmp_path):
    (tmp_path / "x.csv").write_bytes(text_of())
    with pytest.raises((ValueError, OSError), match=message):
        rm.scan(tmp_path / "x.csv", **options)
    np.save(tmp_path / "x.npy", np.eye(3))
    with pytest.raises(ValueError, match="are for CSV text"):
        rm.scan(tmp_path / "x.npy", sep=";")


@pytest.mark.slow
def test_headings_may_be_long_and_many(tmp_path):
    long = "a" * 5_000_000
    (tmp_path / "x.csv").write_text(f"{long},site\n1,u\n2,v\n")
    assert rm.scan(tmp_path / "x.csv").columns == (long, "site")
    names = [f"name{i}" for i in range(20_000)]
    (tmp_path / "x.csv").write_text(",".join(names) + "\n" + (",".join(["1"] * 20_000) + "\n") * 3)
    table = rm.scan(tmp_path / "x.csv")
    assert table.n_rows == 3
    assert len(table.numeric_columns) == 20_000
    (tmp_path / "x.csv").write_text(",".join([*names, "name7"]) + "\n")
    with pytest.raises(OSError, match="two columns named 'name7'"):
        rm.scan(tmp_path / "x.csv")
