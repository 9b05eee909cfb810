"""Codes for missing values among numbers: what is one, what isn't, and who is told."""

import warnings

import numpy as np
import pandas as pd
import pytest

import residmix as rm
from residmix.design.doubts import codes
from residmix.design.doubts.codes import find_codes
from residmix.errors import MissingCodeWarning

N = 300


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2, 3, 4, 5] * 20 + [99] * 4, [(0, 99.0, 4)]),
        ([0, 1] * 40 + [-999] * 3, [(0, -999.0, 3)]),
        ([20, 31, 44, 58, 63, 71, 80] * 9 + [-9999] * 3 + [9999] * 5, [(0, -9999.0, 3), (0, 9999.0, 5)]),
        ([20, 31, 44, 58, 63, 71, 80] * 11 + [-999] * 20, [(0, -999.0, 20)]),  # a fifth of the rows
        ([0, 1] * 40 + [9] * 5, []),
        ([0] * 150 + [1] * 40 + [5] * 3, []),
        ([20, 31, 44, 58, 63, 71, 80] * 9 + [999], []),  # an outlier, not a code
        ([3.0] * 50, []),
        ([0, 1] * 40, []),
    ],
)
def test_codes_repeat_far_outside_all_others(values, found):
    assert sorted(find_codes(np.array(values, dtype=float)[:, None])) == sorted(found)


@pytest.mark.parametrize("mean", [0.05, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("dispersion", [0.3, 1.0, 5.0])
def test_counts_hold_no_codes(rng, mean, dispersion):
    X = rng.negative_binomial(dispersion, dispersion / (dispersion + mean), size=(1000, 300)).astype(float)
    assert find_codes(X) == []
    assert find_codes(np.log1p(X)) == []


def table(rng):
    site, age = rng.choice(["a", "b", "c"], N), rng.uniform(20, 80, N)
    X = rng.normal(size=(N, 2)) + (site == "b")[:, None] + 0.05 * age[:, None]
    return pd.DataFrame(X, columns=["x", "y"]).assign(site=site, age=age)


MODELS = {
    "residualizer": lambda: rm.Residualizer("site + age", features=["x", "y"]),
    "preserved": lambda: rm.Residualizer("site", preserve="age", features=["x", "y"]),
    "transport": lambda: rm.Eraser("site + age", method="spread", features=["x", "y"], random_state=0),
    "mixture": lambda: rm.ResidualMixture(1, formula="site + age", features=["x", "y"]),
}


SLOW = {"transport": [pytest.mark.slow]}


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=SLOW.get(name, [])) for name, make in MODELS.items()]
)
@pytest.mark.parametrize(("column", "what"), [("age", "metadata column"), ("y", "column")])
@pytest.mark.filterwarnings("ignore:a decision tree", "ignore:the transport failed")
def test_codes_in_features_and_in_metadata_are_named_once(rng, make, column, what):
    data = table(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MissingCodeWarning)
        make().fit(data)  # the control
    data.loc[::20, column] = -999.0
    with pytest.warns(MissingCodeWarning, match=rf"-999 in {what} '{column}' \(15 rows\)") as told:
        model = make().fit(data)
    assert len([one for one in told if one.category is MissingCodeWarning]) == 1
    assert [one["kind"] for one in model.notes_].count("missing-code") == 1


def test_codes_are_found_in_arrays_and_from_the_first_rows_of_files(rng, tmp_path):
    data = table(rng)
    data.loc[::20, "age"] = 999.0
    with pytest.warns(MissingCodeWarning, match="999 in metadata column 'm0'"):
        rm.Residualizer().fit(data[["x", "y"]].to_numpy(), metadata=data["age"].to_numpy())
    many = pd.concat([data] * 100, ignore_index=True)
    many.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(MissingCodeWarning, match=r"about 999 in metadata column 'age' \(1500 rows\)"):
        rm.Residualizer("site + age", features=["x", "y"]).fit(rm.scan(tmp_path / "t.parquet"))


def test_a_column_whose_first_values_come_in_a_later_batch_is_looked_at_too(rng):
    data = table(rng).assign(dose=rng.uniform(size=N))
    data.loc[:199, "dose"] = np.nan
    data.loc[200::10, "dose"] = -99.0
    model = rm.Residualizer("age + dose", features=["x", "y"], missing="mean")
    with pytest.warns(MissingCodeWarning, match=r"-99 in metadata column 'dose'"):
        model.fit(lambda: iter([data[:200], data[200:]]))


def test_whole_numbers_with_a_code_are_not_called_codes_of_categories(rng):
    data = table(rng).assign(age=rng.integers(1, 5, N))
    data.loc[::20, "age"] = -999
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rm.Residualizer("site + age", features=["x", "y"]).fit(data)
    assert [one.category for one in told] == [MissingCodeWarning]


def test_columns_without_far_values_are_not_looked_at_one_by_one(rng, monkeypatch):
    x = rng.normal(size=(600, 1500))
    x[:5, 1200], x[3, 7], x[:4, 9] = -999.0, np.nan, 1e6
    x[10:13, 20], x[20:23, 20] = -999.0, 999.0  # at both ends
    x[:3, 30], x[3, 30] = -999.0, -500.0  # no code: one value lies between, on no row that is looked at first
    x[:, 40], x[:, 50], x[7:9, 60] = 3.0, rng.random(600) < 0.02, -999.0
    one_by_one = [(j, found) for j in range(x.shape[1]) if (found := codes._codes(x[:, j]))]
    looked, plain = [], codes._codes

    def counted(column):
        looked.append(column)
        return plain(column)

    monkeypatch.setattr(codes, "_codes", counted)
    told = {}
    for j, value, times in find_codes(x):
        told.setdefault(j, []).append((value, times))
    assert list(told.items()) == one_by_one and list(told) == [9, 20, 1200]
    assert len(looked) < 10
