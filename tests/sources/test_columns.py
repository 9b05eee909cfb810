"""A column that is no feature though nobody said so is told, with the reason."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import residmix as rm
from residmix.errors import DesignWarning
from residmix.sources import as_table

N = 60


@pytest.fixture
def frame(rng):
    return pd.DataFrame({"a": rng.normal(size=N), "b": rng.normal(size=N), "site": ["u", "v", "w"] * 20})


def told(model):
    return {each["column"]: each["reason"] for note in model.notes_ for each in note["figures"].get("columns", ())}


def kinds_of(frame, folder):
    path = folder / "x.csv"
    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), path)
    parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "x.parquet")
    return {
        "pandas": frame,
        "polars": pl.from_pandas(frame),
        "arrow": pa.Table.from_pandas(frame, preserve_index=False),
        "csv": rm.scan(path),
        "parquet": rm.scan(folder / "x.parquet", cache_bytes=0),
    }


def test_what_is_plainly_no_number_is_noted_without_a_warning(frame, tmp_path):
    frame = frame.assign(name=[f"n{i}" for i in range(N)], ok=frame.a > 0, day=datetime.date(2020, 1, 1))
    frame["code"] = [f"{i:03d}" for i in range(N)]  # labels, though made of digits
    for kind, data in kinds_of(frame, tmp_path).items():
        if kind == "csv":  # where the digits are numbers
            continue
        model = rm.Residualizer("site").fit(data)
        assert list(model.features_) == ["a", "b"]
        found = told(model)
        assert set(found) == {"name", "ok", "day", "code"}, kind
        assert found["name"] == found["code"] == "text"
        assert found["ok"] == "truth values"
    table = as_table(frame)
    table.feature_names(exclude=("site",))
    assert [each["column"] for each in table.left_out] == ["name", "ok", "day", "code"]
    assert not any(each["numeric"] for each in table.left_out)
    assert rm.Residualizer("site", features=["a"]).fit(frame).notes_ == []  # who names features has said so


@pytest.mark.parametrize(
    ("values", "reason", "remedy"),
    [
        (["<LOD" if i == 41 else f"{i}.5" for i in range(N)], r"row 41 has '<LOD'", "na_values="),
        (
            ["3,272.3" if i == 7 else f"{i}" for i in range(N)],
            r"thousands, as text \(row 7 has '3,272.3'",
            "thousands=",
        ),
        ([f"{i},5" for i in range(N)], r"decimal comma, as text \(row 0 has '0,5'", "decimal="),
        ([f"{i}.5" for i in range(N)], "numbers as text", "astype"),
    ],
)
def test_what_looks_numeric_is_warned_of_with_row_and_value(values, reason, remedy, frame, tmp_path):
    frame = frame.assign(iron=values)
    for kind, data in kinds_of(frame, tmp_path).items():
        if kind == "csv" and remedy == "astype":
            continue  # they are numbers there
        with pytest.warns(DesignWarning, match=rf"column 'iron' holds .*{reason}.*left out.*{remedy}"):
            model = rm.Residualizer("site").fit(data)
        assert list(model.features_) == ["a", "b"]
        assert set(told(model)) == {"iron"}


@pytest.mark.parametrize(("numbers", "looks_numeric"), [(N // 2, True), (N // 2 - 1, False)])
def test_text_is_taken_for_numbers_if_at_least_half_of_it_is(numbers, looks_numeric, frame):
    table = as_table(frame.assign(iron=[f"{i}.5" if i < numbers else "low" for i in range(N)]))
    if looks_numeric:
        with pytest.warns(DesignWarning, match=rf"row {numbers} has 'low'"):
            table.feature_names(exclude=("site",))
    else:
        table.feature_names(exclude=("site",))
    assert table.left_out[0]["numeric"] is looks_numeric


def test_labels_of_digits_are_labels_only_if_all_are_whole(frame, monkeypatch):
    monkeypatch.setattr("residmix.sources.columns.left_out.LOOKED_AT", 10)
    table = as_table(frame.assign(iron=[f"{i}.5" if i < 5 else f"{i}" for i in range(N)]))
    with pytest.warns(DesignWarning, match="'iron' holds numbers as text"):
        table.feature_names(exclude=("site",))


def test_the_odd_value_may_come_late(frame, tmp_path, monkeypatch):
    monkeypatch.setattr("residmix.sources.columns.left_out.LOOKED_AT", 10)
    frame = frame.assign(iron=["?" if i == 55 else f"{i}.5" for i in range(N)])
    for data in kinds_of(frame, tmp_path).values():
        table = as_table(data)
        with pytest.warns(DesignWarning, match=r"row 55 has '\?'"):
            table.feature_names(exclude=("site",))
        assert table.left_out[0]["numeric"]


LISTS = [pa.list_(pa.float32(), 4), pa.list_(pa.float64()), pa.large_list(pa.int64())]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_lists_of_one_length_are_features(kind, frame, tmp_path, rng):
    matrix = np.round(rng.normal(size=(N, 4)) * 100)
    lists = pa.array([list(map(int if kind == LISTS[2] else float, row)) for row in matrix], kind)
    table = pa.Table.from_pandas(frame, preserve_index=False).append_column("e", lists)
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=17)
    names = ["a", "b", "e[0]", "e[1]", "e[2]", "e[3]"]
    flat = frame.assign(**{f"e[{j}]": matrix[:, j] for j in range(4)})
    expected = rm.Residualizer("site").fit(flat).coef_
    pandas = frame.assign(e=[np.array(row) for row in matrix])
    for data in (
        rm.scan(tmp_path / "x.parquet"),
        rm.scan(tmp_path / "x.parquet", cache_bytes=0, batch_rows=7),
        table,
        pl.from_arrow(table),
        pandas,
    ):
        model = rm.Residualizer("site").fit(data)
        assert list(model.features_) == names
        assert np.array_equal(model.coef_, expected)
        assert np.array_equal(model.transform(data), rm.Residualizer("site").fit(flat).transform(flat))
        assert model.notes_ == []


def test_lists_of_several_lengths_are_left_out_with_a_warning(frame, tmp_path):
    lists = pa.array([list(range(1 + i // 50)) for i in range(N)], pa.list_(pa.float64()))
    table = pa.Table.from_pandas(frame, preserve_index=False).append_column("e", lists)
    parquet.write_table(table, tmp_path / "x.parquet")
    for data in (rm.scan(tmp_path / "x.parquet"), table, pl.from_arrow(table)):
        with pytest.warns(DesignWarning, match="'e' holds lists of numbers of unequal length"):
            model = rm.Residualizer("site").fit(data)
        assert list(model.features_) == ["a", "b"]


def test_a_list_of_another_length_far_down_is_named_by_its_row(frame, tmp_path, monkeypatch):
    monkeypatch.setattr("residmix.sources.files.part.LOOKED_AT", 10)
    lists = pa.array([[1.0, 2.0] if i != 47 else [1.0] for i in range(N)], pa.list_(pa.float64()))
    table = pa.Table.from_pandas(frame, preserve_index=False).append_column("e", lists)
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(OSError, match=r"x\.parquet.*column 'e' has a list of 1 numbers in row 47"):
        rm.Residualizer("site").fit(rm.scan(tmp_path / "x.parquet"))
    assert list(rm.Residualizer("site").fit(rm.scan(tmp_path / "x.parquet", columns=["a", "site"])).features_) == ["a"]


def test_a_missing_list_is_missing_numbers(frame, tmp_path):
    lists = pa.array([[float(i), 2.0] if i != 3 else None for i in range(N)], pa.list_(pa.float64()))
    table = pa.Table.from_pandas(frame, preserve_index=False).append_column("e", lists)
    parquet.write_table(table, tmp_path / "x.parquet")
    got = next(iter(rm.scan(tmp_path / "x.parquet").rows(("e[1]", "e[0]"), allow_nan=True).map(lambda b: b.X)))
    assert np.isnan(got[3]).all()
    assert got[4].tolist() == [2.0, 4.0]
