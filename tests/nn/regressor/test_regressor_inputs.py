"""MDNRegressor: tables, columns and options that are unusual or can't be right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from residmix.errors import DesignWarning
from residmix.nn import MDNRegressor

TINY = {"n_members": 2, "max_epochs": 3, "hidden": (4,), "random_state": 0}
pytestmark = pytest.mark.filterwarnings(
    "ignore::residmix.errors.ResidmixWarning", "ignore::sklearn.exceptions.ConvergenceWarning"
)


def frame(n: int = 60) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    site = np.array(["a", "b", "c"])[np.arange(n) % 3]
    return pd.DataFrame(X, columns=["u", "v", "w"]).assign(age=rng.normal(size=n), site=site), X[:, 0] + X[:, 1]


def test_features_without_metadata_are_the_columns_asked_for() -> None:
    table, y = frame()
    model = MDNRegressor(features=["u", "w"], **TINY).fit(table, y)
    assert list(model.feature_names_in_) == ["u", "w"]
    plain = MDNRegressor(**TINY).fit(table[["u", "w"]], y)
    np.testing.assert_array_equal(model.predict(table), plain.predict(table[["u", "w"]]))
    array = MDNRegressor(features=[0, 2], **TINY).fit(table[["u", "v", "w"]].to_numpy(), y)
    np.testing.assert_array_equal(array.predict(table[["u", "v", "w"]].to_numpy()), model.predict(table))


def test_preserving_without_metadata_is_refused() -> None:
    table, y = frame()
    with pytest.raises(ValueError, match="preserve= needs something to remove"):
        MDNRegressor(preserve="age", **TINY).fit(table[["u", "age"]], y)


@pytest.mark.parametrize("space", ["sample", "feature"])
@pytest.mark.parametrize("width", [2, 6])
def test_arrays_of_another_width_are_refused_beside_metadata_too(space, width) -> None:
    table, y = frame()
    X, age = table[["u", "v", "w"]].to_numpy(), table["age"].to_numpy()
    model = MDNRegressor(space=space, **TINY).fit(X, y, metadata=age)
    with pytest.raises(ValueError, match=f"X has {width} features, but MDNRegressor is expecting 3 features"):
        model.predict(np.tile(X, 2)[:, :width], metadata=age)


def test_names_of_an_earlier_fit_are_forgotten() -> None:
    table, y = frame()
    model = MDNRegressor(**TINY).fit(table[["u", "v", "w"]], y)
    model.fit(table[["u", "v"]].to_numpy(), y, metadata=table["age"].to_numpy())
    assert not hasattr(model, "feature_names_in_") and model.n_features_in_ == 2


def test_errors_about_metadata_suggest_only_what_the_estimator_has() -> None:
    table, y = frame()
    absent = table.assign(age=table["age"].where(table["age"] < 1))
    model = MDNRegressor("C(site) + age", **TINY).fit(table, y)
    for call, what in (
        (lambda: MDNRegressor("C(site) + age", **TINY).fit(absent, y), "missing values"),
        (lambda: model.predict(absent), "missing values"),
        (lambda: model.predict(table.assign(site="z")), "levels that fit did not see: 'z'"),
        (lambda: model.predict(table.assign(site=None)), "missing value"),
    ):
        with pytest.raises(ValueError, match=f"{what}.*doesn't support these; fill them") as raised:
            call()
        assert "missing=" not in str(raised.value) and "on_unknown" not in str(raised.value)


@pytest.mark.parametrize(
    ("hidden", "error", "message"),
    [(8, TypeError, "'hidden' parameter of MDNRegressor must be an array-like. Got 8"), (None, TypeError, "Got None"),
     ((0,), ValueError, "at least 1"), ((8, -3), ValueError, "at least 1"), ((2.5,), TypeError, "whole number")],
)  # fmt: skip
def test_widths_that_cannot_be_right_are_refused(hidden, error, message) -> None:
    table, y = frame()
    with pytest.raises(error, match=message):
        MDNRegressor(**{**TINY, "hidden": hidden}).fit(table[["u"]], y)
    assert MDNRegressor(**{**TINY, "hidden": np.array([4])}).fit(table[["u"]], y).network_


@pytest.mark.parametrize(
    "y", [pd.Series(pd.date_range("2020-01-01", periods=60)), np.ones(60) * 1j, pd.Series(pd.to_timedelta(range(60)))]
)
def test_dates_and_complex_targets_are_refused(y) -> None:
    with pytest.raises(ValueError, match="y must be real numbers, not"):
        MDNRegressor(**TINY).fit(np.arange(60.0)[:, None], y)


def test_levels_that_cannot_be_right_are_refused() -> None:
    table, y = frame()
    model = MDNRegressor(**TINY).fit(table[["u"]], y)
    with pytest.raises(ValueError, match=r"'level' parameter of predict_interval must be a float in .* Got 1.0"):
        model.predict_interval(table[["u"]], level=1.0)
    for quantiles in (0.5, [], [[0.1, 0.9]]):
        with pytest.raises(ValueError, match="quantiles must be a list"):
            model.predict(table[["u"]], output="quantiles", quantiles=quantiles)


def test_fits_side_by_side_in_threads_are_those_of_one_after_the_other() -> None:
    table, y = frame()

    def predicted(seed: int) -> np.ndarray:
        model = MDNRegressor("age", **{**TINY, "random_state": seed}).fit(table, y)
        return model.sample(table, 2, random_state=seed)

    seeds = [0, 1] * 4
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(predicted, seeds))
    alone = [predicted(seed) for seed in (0, 1)]
    for seed, values in zip(seeds, together, strict=True):
        np.testing.assert_array_equal(values, alone[seed])


def test_the_default_dtype_of_torch_does_not_matter() -> None:
    table, y = frame()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = MDNRegressor("age", **TINY).fit(table[["u", "age"]], y)
        assert np.isfinite(model.score(table, y))
    finally:
        torch.set_default_dtype(before)


def test_errors_about_values_name_the_column() -> None:
    table, y = frame()
    for value, kind in ((np.nan, "NaN"), (np.inf, "infinity")):
        wrong = table[["u", "v"]].copy()
        wrong.iloc[3, 1] = value
        with pytest.raises(ValueError, match=rf"(?s){kind}.*column 'v' has {value} in 1 row\(s\), the first in row 3"):
            MDNRegressor(**TINY).fit(wrong, y)
    model = MDNRegressor(**TINY).fit(table[["u", "v"]], y)
    with pytest.raises(ValueError, match="column 'v' has inf"):
        model.predict(wrong)
    for column in (table["site"], table["site"].astype("category")):
        with pytest.raises(ValueError, match=r"column 'site' holds \w+, not numbers"):
            MDNRegressor(**TINY).fit(table[["u"]].assign(site=column), y)


@pytest.mark.filterwarnings("always::residmix.errors.DesignWarning")
def test_with_a_formula_a_column_that_is_neither_is_named_and_noted() -> None:
    table, y = frame()
    table = table.assign(colour=["red", "blue"] * 30)
    with pytest.warns(DesignWarning, match="left out of the features: colour"):
        model = MDNRegressor(formula="C(site) + age", **TINY).fit(table, y)
    assert list(model.feature_names_in_) == ["u", "v", "w"]
    notes = [note for note in model.notes_ if note["kind"] == "columns-left-out"]
    assert [note["figures"] for note in notes] == [{"columns": ["colour"]}]
    quiet = MDNRegressor(formula="C(site) + age", features=["u", "v", "w"], **TINY).fit(table, y)
    assert not [note for note in quiet.notes_ if note["kind"] == "columns-left-out"]


@pytest.mark.parametrize("value", [-1e6, 0.0, 3.5e-7, 1e12])
def test_a_constant_target_is_predicted_as_it_is(value) -> None:
    table, y = frame()
    X = table[["u", "v"]]
    model = MDNRegressor(**TINY | {"max_epochs": 20}).fit(X, np.full(60, value))
    np.testing.assert_allclose(model.predict(X), value, rtol=1e-14)
    both = MDNRegressor(**TINY).fit(X, np.column_stack([y, np.full(60, value)]))
    np.testing.assert_allclose(both.predict(X)[:, 1], value, rtol=1e-14)
    assert both.predict(X)[:, 0].std() > 0


@pytest.mark.parametrize("space", ["sample", "feature"])
def test_a_combination_of_levels_that_no_row_had_is_refused_where_metadata_are_needed(space) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 2)), rng.normal(size=90)
    metadata = pd.DataFrame({"site": rng.choice(list("ABC"), 90), "sex": rng.choice(list("FM"), 90)})
    metadata.loc[metadata.site == "C", "sex"] = "F"
    other = pd.DataFrame({"site": ["A", "C"], "sex": ["M", "M"]})
    model = MDNRegressor("C(site) * C(sex)", space=space, **TINY).fit(X, y, metadata=metadata)
    assert np.isfinite(model.predict(X[:1], metadata=other[:1])).all()
    if space == "feature":
        assert np.isfinite(model.predict(X[:2])).all()
    else:
        with pytest.raises(ValueError, match=r"row 1 has a combination of levels .* fit without the interaction"):
            model.predict(X[:2], metadata=other)
