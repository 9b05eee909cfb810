"""Designs on new rows: unseen levels, missing values, and what is refused or warned of."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import residmix as rm
from residmix.design.fit import fit_design
from residmix.errors import DesignWarning, RareLevelWarning


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "site": rng.choice(["ulm", "bonn", "jena", "kiel"], n),
            "age": rng.gamma(9, 6, n),
            "sex": rng.choice(["f", "m"], n),
            "dose": rng.integers(1, 40, n),
            "run": rng.integers(0, 3, n),
            "smoker": rng.random(n) < 0.3,
            "head motion": rng.normal(size=n),
        }
    )


def fit(frame, formula=None, **options):
    return fit_design(lambda: iter([frame]), formula=formula, **options)


# ---- new rows --------------------------------------------------------------------------------------------------------


def test_a_level_that_fit_did_not_see_is_an_error_that_names_it():
    design = fit(table(), "site + age")
    new = pd.DataFrame({"site": ["ulm", "bon", "mars"], "age": [1.0, 2.0, 3.0]})
    with pytest.raises(
        ValueError, match=r"'site' has levels .*'bon', 'mars', in 2 rows \(the first in row 1\) - did you mean 'bonn'"
    ):
        design.matrix(new)


@pytest.mark.parametrize("coding", ["site", "C(site, contr.sum)", "C(site, contr.helmert)"])
def test_an_unseen_level_gets_the_average_of_the_known_ones_whatever_the_coding(coding):
    frame = table()
    design = fit(frame, coding, on_unknown="mean")
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=design.n_removed)
    known = design.matrix(pd.DataFrame({"site": ["bonn", "jena", "kiel", "ulm"]})).dense @ coefficients
    result = design.matrix(pd.DataFrame({"site": ["mars", "ulm"]}))
    assert (result.dense @ coefficients)[0] == pytest.approx(known.mean(), abs=1e-14)
    assert result.unknown.tolist() == [True, False]
    assert result.unknown_levels == {"site": ("mars",)}


def test_the_reference_level_is_not_what_an_unseen_level_becomes():
    design = fit(table(), "site", on_unknown="mean")
    assert (design.matrix(pd.DataFrame({"site": ["mars"]})).dense == 0.25).all()


def test_an_unseen_level_of_an_absorbed_factor_is_coded_minus_one():
    frame = table()
    design = fit(frame, "site", absorb_above=0, on_unknown="mean")
    result = design.matrix(pd.DataFrame({"site": ["mars", "bonn"]}))
    assert result.codes[0].tolist() == [-1, 0] and result.unknown.tolist() == [True, False]


def test_a_fold_that_lacks_a_level_is_coded_as_in_fit():
    frame = table()
    design = fit(frame, "site * sex")
    few = frame[(frame.site == "jena") & (frame.sex == "m")]
    whole = design.matrix(frame).dense[(frame.site == "jena") & (frame.sex == "m")]
    np.testing.assert_array_equal(design.matrix(few).dense, whole)


def test_splines_clip_beyond_the_training_range_unless_told_otherwise():
    frame = table()
    ends = pd.DataFrame({"age": [frame.age.min(), frame.age.max()]})
    beyond = pd.DataFrame({"age": [-1e6, 1e6]})
    design = fit(frame, "bs(age, df=4)")
    np.testing.assert_array_equal(design.matrix(beyond).dense, design.matrix(ends).dense)
    with pytest.raises(ValueError, match="extend beyond"):
        fit(frame, "bs(age, df=4, extrapolation='raise')").matrix(beyond)


# ---- missing values --------------------------------------------------------------------------------------------------


def with_gaps():
    frame = table()
    frame.loc[[3, 7], "age"] = np.nan
    frame.loc[[5], "site"] = None
    return frame


@pytest.mark.parametrize("column", ["age", "site"])
def test_missing_metadata_is_an_error_that_counts_it(column):
    frame = with_gaps()
    first, count = (3, "2 missing values") if column == "age" else (5, "1 missing value")
    for use in (lambda: fit(frame, column), lambda: fit(table(), column).matrix(frame)):
        with pytest.raises(
            ValueError, match=rf"'{column}' has {count} \(the first in row {first}\); set missing='mean'"
        ):
            use()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_value_that_is_no_number_is_found_in_any_column_of_an_array(column, bad):
    metadata = np.random.default_rng(0).normal(size=(20, 3))
    metadata[7, column] = bad
    with pytest.raises(ValueError, match=rf"metadata column 'm{column}' (has|holds) 1 .*row 7"):
        rm.Residualizer().fit(np.zeros((20, 2)), metadata=metadata)


def test_missing_as_mean_puts_the_training_mean_and_the_mean_of_the_levels():
    frame = with_gaps()
    design = fit(frame, "age + I(age ** 2) + site", missing="mean")
    matrix = design.matrix(frame).dense
    mean = frame.age.mean()
    np.testing.assert_allclose(matrix[[3, 7], :2], [[mean, mean**2]] * 2, rtol=1e-14)
    assert (matrix[5, 2:] == 0.25).all()
    others = np.setdiff1d(np.arange(300), [3, 5, 7])
    np.testing.assert_array_equal(
        matrix[others], fit(frame.iloc[others], "age + I(age ** 2) + site").matrix(frame.iloc[others]).dense
    )


def test_missing_as_indicator_has_an_effect_of_its_own():
    frame = with_gaps()
    with pytest.warns(RareLevelWarning, match=r"site=\(missing\) \(1 row\)"):
        design = fit(frame, "age + site", missing="indicator", preserve="sex")
    assert design.column_names == (
        "age", "site[T.jena]", "site[T.kiel]", "site[T.ulm]", "site[T.(missing)]", "age[missing]", "sex[T.m]",
    )  # fmt: skip
    matrix = design.matrix(frame).dense
    assert np.flatnonzero(matrix[:, 5]).tolist() == [3, 7]
    assert np.flatnonzero(matrix[:, 4]).tolist() == [5]
    assert matrix[3, 0] == pytest.approx(frame.age.mean(), rel=1e-14)


def test_missing_levels_that_fit_never_saw_follow_the_rule_for_unseen_levels():
    gaps = pd.DataFrame({"site": [None, "ulm"]})
    with pytest.raises(ValueError, match="had none in fit, so they have no level"):
        fit(table(), "site", missing="indicator").matrix(gaps)
    result = fit(table(), "site", missing="indicator", on_unknown="mean").matrix(gaps)
    assert (result.dense[0] == 0.25).all() and result.unknown.tolist() == [True, False]


def test_every_kind_of_table_says_missing_the_same_way():
    frame = with_gaps()
    expected = fit(frame, "age + site", missing="mean").matrix(frame).dense
    categories = frame.astype({"site": "category"})
    for other in (
        pl.from_pandas(frame),
        pa.Table.from_pandas(frame),
        categories,
        pa.Table.from_pandas(categories),
        frame.astype({"site": object, "age": object}),
        frame.convert_dtypes(),
    ):
        design = fit(other, "age + site", missing="mean")
        np.testing.assert_array_equal(design.matrix(other).dense, expected)


def test_a_chunk_in_which_all_is_missing_changes_nothing():
    frame = with_gaps()
    empty = pl.DataFrame({"site": [None] * 3, "age": [None] * 3})
    design = fit_design(
        lambda: iter([empty, pl.from_pandas(frame[["site", "age"]])]), formula="site + age", missing="mean"
    )
    assert design.column_names == fit(frame, "site + age", missing="mean").column_names
    assert (design.matrix(empty).dense[:, :3] == 0.25).all()


# ---- errors and warnings ---------------------------------------------------------------------------------------------


def test_an_unknown_column_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown metadata column 'sight' - did you mean 'site'"):
        fit(table(), "sight + age")
    with pytest.raises(ValueError, match="unknown metadata column 'age'"):
        fit(table(), "age").matrix(table().drop(columns="age"))


def test_text_where_numbers_are_needed_is_an_error():
    with pytest.raises(TypeError, match=r"log\(site\) needs numbers, but metadata column 'site' holds text"):
        fit(table(), "log(site)")
    with pytest.raises(TypeError, match="'age' must hold numbers, and holds 'old'"):
        fit(table(), "age").matrix(pd.DataFrame({"age": ["old", "young"]}))
    with pytest.raises(TypeError, match="holds numbers in some rows and text in others"):
        fit_design(lambda: iter([table(), table().assign(age="old")]), formula="age")


def test_dates_mixed_types_and_infinite_values_are_errors():
    frame = table()
    with pytest.raises(TypeError, match="'day' holds Datetime"):
        fit(frame.assign(day=pd.Timestamp("2020-01-01")), "day")
    with pytest.raises(TypeError, match="mixes values of types int, str"):
        fit(pd.DataFrame({"site": ["a", 1, "b"]}), "site")
    frame.loc[4, "age"] = np.inf
    with pytest.raises(ValueError, match=r"'age' holds 1 infinite value \(the first in row 4\)"):
        fit(frame, "age")


def test_a_function_that_leaves_the_numbers_is_an_error_with_the_row():
    frame = table().assign(dose=0)
    with pytest.raises(
        ValueError, match=r"log\(dose\) is not finite in 300 rows \(the first is row 0, where dose = 0\)"
    ):
        fit(frame, "log(dose)")


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("bs(age, df=2)", "df must be a whole number from 3"),
        ("bs(age, df=4.5)", "df must be a whole number"),
        ("bs(age, df='4')", "df must be a whole number"),
        ("bs(age, df=5, knots=[1])", "df or knots, not both"),
        ("bs(age, knots=['a'])", "knots must be a list of numbers"),
        ("bs(age, extrapolation='guess')", "extrapolation must be 'clip'"),
        ("bs(age, lower_bound=10, upper_bound=5)", "the lower bound 10 is above the upper bound 5"),
        ("cr(age)", "give df or knots"),
        ("cr(one, df=5)", r"df=5 needs 6 distinct knots, but the column has 1 distinct values"),
        ("poly(smoke, 2)", "degree 2 needs more than 2 distinct values"),
        ("poly(one, 1)", "degree 1 needs more than 1 distinct values, and there are 1"),
        ("bs(poly(age, 2), df=4)", "the argument has 2 columns, but must have one"),
        ("C(site, contrast='b')", "contrast must be contr.treatment"),
        ("C(site, levels=['ulm'])", "holds 'bonn', which is not among the levels of C.site, levels=.'ulm'.."),
        ("C(site, contr.treatment('bon'))", "no such level - did you mean 'bonn'"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_errors(formula, message):
    with pytest.raises(ValueError, match=message):
        fit(table().assign(smoke=lambda f: f.smoker * 1.0, one=1.0), formula)


def test_integer_codes_that_enter_as_a_number_are_warned_of():
    told = r"'run' holds only 3 distinct integers .* Write C\(run\)"
    for codes in (
        table(),
        table().assign(run=lambda f: f.run.astype(float)),
        # integers are floats in pandas where one is missing
        table().assign(run=lambda f: f.run.where(f.run.index != 3).astype(float)),
    ):
        with pytest.warns(DesignWarning, match=told):
            fit(codes, "run", missing="mean")
    # Nothing to say of codes written as such, of amounts, of 0/1, of fractions and of columns with many values.
    frame = table().assign(flag=lambda f: (f.run > 0).astype(int), score=lambda f: f.run + 0.5)
    fit(frame, "C(run) + flag + dose + score + age")
    fit(frame, "I(run)")


def test_codes_in_an_array_are_warned_of_however_the_rows_are_cut():
    codes = np.repeat([1, 2, 7], 400)[:, None] * np.ones(2)
    codes[:, 1] += np.linspace(0.0, 0.9, 1200)
    for chunks in ([codes], [codes[:7], codes[7:500], codes[500:]]):
        for kind in (codes.dtype, np.float32):
            with pytest.warns(DesignWarning, match=r"'m0' holds only 3 distinct integers .* Write C\(m0\)"):
                fit_design(lambda chunks=chunks, kind=kind: iter([chunk.astype(kind) for chunk in chunks]))
    fit_design(lambda: iter([codes[:, 1:]]))
    late = np.r_[np.zeros(300), np.arange(300.0)]  # codes as far as the first rows tell
    fit_design(lambda: iter([late]))


@pytest.mark.filterwarnings("ignore:too few rows")
def test_text_that_holds_numbers_or_dates_is_warned_of_with_the_remedy():
    whole = np.arange(20, 70).repeat(4).astype(str)
    age = whole.copy()
    age[7] = "unknown"
    days = pd.date_range("2020-01-01", periods=50).strftime("%d/%m/%Y").to_numpy().repeat(4)
    for values, told in (
        (age, r"'age' is text that holds numbers, .* 1 of them not \('unknown'\).*to_numeric"),
        (np.char.add(whole, ".5"), r"'age' is text that holds numbers, so its 50 distinct values become 50 levels"),
        (days, r"'age' is text that holds dates, so its 50 distinct values become 50 levels"),
    ):
        with pytest.warns(DesignWarning, match=told):
            fit(pd.DataFrame({"age": values}), "age")
        fit(pd.DataFrame({"age": values}), "C(age)")
    # codes, names, few values
    for values in (whole, [f"s{k}" for k in range(50)] * 4, ["1", "2", "3", "unknown"] * 20):
        fit(pd.DataFrame({"age": values}), "age")


def test_a_level_with_fewer_than_three_rows_is_warned_of_with_its_count():
    frame = table().drop(columns="run")
    frame.loc[:1, "site"] = "mars"
    with pytest.warns(RareLevelWarning, match=r"site=mars \(2 rows\)"):
        fit(frame, "site")
    fit(frame, "age", preserve="site")  # what isn't removed isn't our concern
    frame.loc[:2, "site"] = "mars"
    fit(frame, "site")


def test_choices_are_checked():
    with pytest.raises(ValueError, match="on_unknown must be one of 'error', 'mean'"):
        fit(table(), "age", on_unknown="ignore")
    with pytest.raises(ValueError, match="missing must be one of"):
        fit(table(), "age", missing="drop")


def test_a_design_too_wide_to_write_out_is_refused():
    frame = pd.DataFrame(
        {"a": np.repeat(np.arange(150), 150).astype(str), "b": np.tile(np.arange(150), 150).astype(str)}
    )
    with pytest.raises(ValueError, match="more than 20000 columns at term 'a:b'"):
        fit(frame, "a:b")


def test_metadata_is_never_changed():
    frame = with_gaps()
    before = frame.copy(deep=True)
    design = fit(frame, "site * scale(age) + bs(age, df=5) + cr(dose, df=4) + smoker", missing="mean")
    design.matrix(frame)
    pd.testing.assert_frame_equal(frame, before)
