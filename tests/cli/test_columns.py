"""No column is left out without a word, and what looks like a measurement never is."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from residmix.cli.shared.columns import plan_columns, quoted, speaks_of_identifier
from residmix.cli.shared.data import Data
from residmix.sources import as_table


@pytest.fixture
def table(rng):
    n = 120
    return pd.DataFrame(
        {
            "subject_id": np.arange(1000, 1000 + n),
            "site": rng.choice(["a", "b", "c"], n),
            "age": rng.uniform(20, 80, n),
            "sex": rng.integers(0, 2, n),
            "comment": "fine",
            "seen": pd.date_range("2020-01-01", periods=n),
            "smokes": rng.random(n) > 0.5,
            "v00": rng.normal(3000, 400, n),
            "v01": rng.normal(size=n),
        }
    )


def fitted(run, table, path, *options, code=0):
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return run("fit", path, "--formula", "C(site) + age", "-k", 1, *options, code=code)


def test_every_column_that_is_no_feature_is_named_with_its_reason(run, table, tmp_path):
    result = fitted(run, table, tmp_path / "t.parquet", "--json")
    first = result.stderr.splitlines()[0]
    assert first.startswith("3 features; left out: ")
    for told in ("subject_id (an identifier)", "comment (text)", "seen (dates or times)", "smokes (truth values)"):
        assert told in first
    summary = json.loads(result.stdout)
    assert summary["feature_names"] == ["sex", "v00", "v01"]
    (note,) = [note for note in summary["notes"] if note["kind"] == "left-out-columns"]
    assert note["figures"]["left_out"] == {
        "subject_id": "an identifier", "comment": "text", "seen": "dates or times", "smokes": "truth values"
    }  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_column_without_a_value_is_left_out_as_such(run, table, tmp_path, ending):
    first = fitted(run, table.assign(v09=None), tmp_path / f"t{ending}").stderr.splitlines()[0]
    assert "v09 (no values)" in first or "v09 (text)" in first


def test_a_numeric_sex_among_the_features_is_named(run, table, tmp_path):
    summary = json.loads(fitted(run, table, tmp_path / "t.csv", "--json").stdout)
    (note,) = [note for note in summary["notes"] if note["kind"] == "two-valued-features"]
    assert note["figures"] == {"features": {"sex": [0.0, 1.0]}}
    summary = json.loads(fitted(run, table, tmp_path / "t.csv", "--json", "--exclude", "sex").stdout)
    assert all(note["kind"] != "two-valued-features" for note in summary["notes"])
    assert summary["feature_names"] == ["v00", "v01"]


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ("3,272.3", ("--thousands", ",")),
        ("<LOD", ("--na-values", "<LOD")),
        ("not done", ("--na-values", "not done")),
    ],
)
def test_numbers_written_as_text_stop_the_fit_with_the_cell_and_what_helps(run, table, tmp_path, cell, remedy):
    table["v00"] = table["v00"].round(1).astype(object)
    table.loc[4, "v00"] = cell
    message = fitted(run, table, tmp_path / "t.csv", code=1).stderr
    assert "column 'v00' holds" in message
    assert f"row 4 has '{cell}'" in message
    assert shlex.join(remedy) in message or f"{remedy[0]} '{remedy[1]}'" in message
    assert "--exclude v00" in message
    fitted(run, table, tmp_path / "t.csv", "--exclude", "v00", "--quiet")
    summary = json.loads(fitted(run, table, tmp_path / "t.csv", *remedy, "--drop-missing", "--json", "-q").stdout)
    assert "v00" in summary["feature_names"]
    assert summary["n_rows"] == len(table) - (remedy[0] == "--na-values")


def test_decimal_commas_are_told_and_read(run, table, tmp_path):
    table.round(3).to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",")
    options = ("fit", tmp_path / "t.csv", "--formula", "C(site)", "-k", 1, "--exclude", "sex,age")
    assert "--sep" in run(*options, code=1).stderr
    assert "--decimal ','" in run(*options, "--sep", ";", code=1).stderr
    summary = json.loads(run(*options, "--sep", ";", "--decimal", ",", "--json", "-q").stdout)
    assert summary["feature_names"] == ["v00", "v01"]


def test_a_column_of_lists_is_read_and_never_skipped(run, table, tmp_path, rng):
    table["embedding"] = [list(row) for row in rng.normal(size=(len(table), 3))]
    table["length"] = rng.normal(size=len(table))
    table = table[["site", "age", "embedding", "length"]].copy()
    summary = json.loads(fitted(run, table, tmp_path / "t.parquet", "--json").stdout)
    assert set(summary["feature_names"]) == {"embedding[0]", "embedding[1]", "embedding[2]", "length"}
    summary = json.loads(fitted(run, table, tmp_path / "t.parquet", "--features", "embedding*", "--json").stdout)
    assert summary["feature_names"] == ["embedding[0]", "embedding[1]", "embedding[2]"]
    table["embedding"] = [[1.0] * (1 + i % 2) for i in range(len(table))]
    message = fitted(run, table, tmp_path / "t.parquet", code=1).stderr
    assert "'embedding' holds lists of numbers of unequal length" in message


def test_text_that_is_mostly_words_is_text(run, table, tmp_path):
    table["answer"] = np.where(np.arange(len(table)) % 3 == 0, "7", "often")
    assert "answer (text)" in fitted(run, table, tmp_path / "t.csv", "--exclude", "sex").stderr


def test_an_identifier_is_one_by_its_values_and_by_its_name(run, table, tmp_path):
    table["patient_weight"] = np.arange(len(table))  # all different and whole, but no identifier by its name
    table["id"] = table["v01"]  # an identifier by its name only
    told = json.loads(fitted(run, table, tmp_path / "t.csv", "--json", "--quiet").stdout)
    assert {"patient_weight", "id"} <= set(told["feature_names"])
    assert not speaks_of_identifier("width")


@pytest.mark.parametrize("features", ["v0*", "v00,v01", "'v00', v01", '"v00",v01', "v*"])
def test_features_are_names_or_patterns(run, table, tmp_path, features):
    if features.startswith("'"):
        fitted(run, table, tmp_path / "t.csv", "--features", features, code=1)
        return
    summary = json.loads(fitted(run, table, tmp_path / "t.csv", "--json", "--features", features).stdout)
    assert summary["feature_names"] == ["v00", "v01"]


def test_a_name_with_a_comma_stands_in_quotes(run, table, tmp_path):
    table = table.rename(columns={"v00": "a, b"})
    for given in ('"a, b",v01', "a, b"):
        summary = json.loads(fitted(run, table, tmp_path / "t.csv", "--json", "--features", given).stdout)
        assert "a, b" in summary["feature_names"]
    assert quoted("a, b") == "'\"a, b\"'"


def test_a_pattern_without_a_match_and_a_beginning_of_a_name_are_told(run, table, tmp_path):
    assert "no column matches 'w*'" in fitted(run, table, tmp_path / "t.csv", "--features", "w*", code=1).stderr
    assert "did you mean 'v00'" in fitted(run, table, tmp_path / "t.csv", "--features", "v0", code=1).stderr


def test_dropped_rows_are_counted_and_what_lost_them_is_named(run, table, tmp_path):
    table.loc[:49, "v00"] = np.nan
    table.loc[45:59, "age"] = np.nan
    table.loc[100:, "comment"] = None  # isn't used, so it costs no row
    result = fitted(run, table, tmp_path / "t.csv", "--drop-missing", "--json")
    assert "60 of 120 rows (50%) are left out for missing values: v00 (50), age (15)" in result.stderr
    summary = json.loads(result.stdout)
    assert summary["n_rows"] == 60
    (alert,) = [alert for alert in summary["alerts"] if alert["kind"] == "dropped-rows"]
    assert alert["figures"] == {"rows": 120, "dropped": 60, "missing": {"v00": 50, "age": 15}}


def test_no_complete_row_is_an_error_that_names_the_columns(run, table, tmp_path):
    table["v00"] = np.where(np.arange(len(table)) % 2, np.nan, table["v00"])
    table["v01"] = np.where(np.arange(len(table)) % 2, table["v01"], np.nan)
    message = fitted(run, table, tmp_path / "t.csv", "--drop-missing", code=1).stderr
    assert "no row is complete; missing values: v00 (60), v01 (60)" in message


class Counted(str):
    """A name that counts how often it is compared with another."""

    comparisons = 0
    __slots__ = ()

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("features", [None, "x*", ",".join(f"x{j}" for j in range(3_000))], ids=["all", "*", "listed"])
@pytest.mark.slow
def test_columns_are_planned_without_comparing_each_with_each(features, rng):
    names = [Counted(name) for name in ("site", "name", *(f"x{j}" for j in range(3_000)))]
    frame = pd.DataFrame(rng.normal(size=(4, len(names))), columns=pd.Index(names, dtype=object))
    frame[names[0]], frame[names[1]] = list("abab"), list("cdef")
    options = SimpleNamespace(formula="C(site)", preserve=None, compare=None, features=features, exclude="x7")
    Counted.comparisons = 0
    planned = plan_columns(Data("t.csv", as_table(frame), ()), options)
    assert Counted.comparisons < 100 * len(names)
    assert planned.features == tuple(f"x{j}" for j in range(3_000) if j != 7)
    assert planned.metadata == ("site",)
    assert "x7" in planned.left_out and ("name" in planned.left_out) == (features is None)
    before = Counted.comparisons
    assert all(name in names for name in map(Counted, names))
    assert Counted.comparisons - before > 1_000 * len(names)  # the control: a search through all of them
