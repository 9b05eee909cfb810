"""Residuals of rows that took no part in their fit; regressors other than least squares; the leakage warning."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor

from residmix import Residualizer
from residmix.errors import DesignWarning, LeakageWarning, RareLevelWarning


def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    site, age = rng.integers(0, 3, n), rng.uniform(20, 80, n)
    return pd.DataFrame(
        {
            "site": np.array(["a", "b", "c"])[site],
            "age": age,
            "group": rng.normal(size=n) + site,
            "u": site + 0.1 * age + rng.normal(size=n),
            "v": 2.0 * site - 0.1 * age + rng.normal(size=n),
            "w": rng.uniform(0.2, 3, n),
        }
    )


FEATURES = ["u", "v"]


@pytest.mark.parametrize("preserve", [None, "group"])
@pytest.mark.parametrize("alpha", [0.0, 5.0])
@pytest.mark.parametrize("weight", [None, "w"])
def test_leave_one_out_equals_refitting_without_the_row(preserve, alpha, weight):
    data = table()
    model = Residualizer("site + age", preserve=preserve, alpha=alpha, features=FEATURES)
    loo = clone(model).set_params(residuals="loo").fit_transform(data, sample_weight=weight)
    refitted = [
        clone(model).fit(data.drop(index=i), sample_weight=weight).transform(data.iloc[[i]])[0]
        for i in range(len(data))
    ]
    assert_allclose(loo, refitted, atol=1e-11)
    assert np.abs(loo - model.fit_transform(data, sample_weight=weight)).max() > 0.05


def test_leave_one_out_allows_missing_features_and_new_rows_stay_as_they_are():
    data = table()
    data.loc[[3, 7], "u"] = np.nan
    model = Residualizer("site + age", features=FEATURES, residuals="loo")
    loo = model.fit_transform(data)
    without = model.fit(data.drop(index=5)).transform(data.iloc[[5]])
    assert_allclose(loo[5], without[0], atol=1e-11)
    assert np.isnan(loo[[3, 7], 0]).all()
    plain = Residualizer("site + age", features=FEATURES).fit(data)
    assert_array_equal(model.fit(data).transform(data), plain.transform(data))


def test_the_only_row_of_a_level_has_no_leave_one_out_residual():
    data = table()
    data.loc[4, "site"] = "lonely"
    with (
        pytest.warns(RareLevelWarning),
        pytest.raises(ValueError, match=r"1 rows \(the first is row 4\) have no leave-one-out"),
    ):
        Residualizer("site", features=FEATURES, residuals="loo").fit_transform(data)
    with (
        pytest.warns(RareLevelWarning, match="fewer than 3 rows"),
        pytest.warns(RareLevelWarning, match=r"1 level of 'site' \('lonely'\) is in one fold only"),
    ):
        crossed = Residualizer("site", features=FEATURES, residuals="cross-fitted").fit_transform(data)
    assert np.isfinite(crossed).all()


@pytest.mark.parametrize("policy", ["mean", "shrink"])
def test_cross_fitting_keeps_what_is_to_be_done_with_unknown_levels(policy):
    rng = np.random.default_rng(3)
    site = np.repeat(np.arange(6), [4, 5, 6, 40, 50, 60])
    u = 3.0 * rng.normal(size=165) + 2.0 * rng.normal(size=6)[site]
    data = pd.DataFrame({"site": [f"s{k}" for k in site], "u": u})
    model = Residualizer("site", on_unknown=policy, residuals="cross-fitted", cv=OneFoldPerGroup(site))
    out = model.fit_transform(data)  # without a warning: what happens was asked for
    for k in range(6):
        expected = Residualizer("site", on_unknown=policy).fit(data[site != k]).transform(data[site == k])
        assert_allclose(out[site == k], expected, atol=1e-12)
    other = clone(model).set_params(on_unknown={"mean": "shrink", "shrink": "mean"}[policy])
    assert np.abs(other.fit_transform(data) - out).max() > 0.05
    with pytest.warns(RareLevelWarning, match=r"6 levels of 'site' \('s0', 's1', 's2', 's3', 's4' and 1 more\) are in"):
        unasked = clone(model).set_params(on_unknown="error").fit_transform(data)
    if policy == "mean":
        assert_array_equal(unasked, out)


class OneFoldPerGroup:
    """Folds of one group each."""

    def __init__(self, groups):
        self.groups = groups

    def split(self, X):
        for group in np.unique(self.groups):
            yield np.flatnonzero(self.groups != group), np.flatnonzero(self.groups == group)


def test_training_residuals_have_the_variance_of_new_ones_only_if_honest():
    rng = np.random.default_rng(1)
    M, X = rng.normal(size=(200, 60)), rng.normal(size=(200, 50))
    in_sample = Residualizer().fit(X, metadata=M)
    new = in_sample.transform(rng.normal(size=(2000, 50)), metadata=rng.normal(size=(2000, 60))).var()
    # sigma^2 (1 - p/n) = 0.70 in sample; 1 / (1 - p/n) = 1.44 left out; 1 + p/(n - p - 1) = 1.43 for new rows.
    assert_allclose(in_sample.transform(X, metadata=M).var(), 0.70, atol=0.03)
    assert_allclose(Residualizer(residuals="loo").fit_transform(X, metadata=M).var(), new, rtol=0.06)


def test_standard_errors_use_the_degrees_of_freedom_that_are_left():
    rng = np.random.default_rng(2)
    M, X = rng.normal(size=(80, 20)), rng.normal(size=(80, 3))
    model = Residualizer().fit(X, metadata=M)
    A = np.column_stack([M, np.ones(80)])
    rss = np.sum((X - A @ np.linalg.lstsq(A, X, rcond=None)[0]) ** 2, axis=0)
    expected = np.sqrt(rss[0] / (80 - 21) * np.diag(np.linalg.inv(A.T @ A)))
    assert_allclose(model.tidy().query("feature == 'x0'")["std_error"], expected, rtol=1e-10)
    assert_array_equal(model.fit_.residual_degrees, 59)


@pytest.mark.parametrize("options", [{}, {"scale": True}, {"estimator": DecisionTreeRegressor(random_state=0)}])
def test_cross_fitted_residuals_come_from_the_other_folds(options):
    data = table(120)
    folds = KFold(4, shuffle=True, random_state=3)
    model = Residualizer("site + age", features=FEATURES, residuals="cross-fitted", cv=folds, **options)
    out = model.fit_transform(data)
    for train, test in folds.split(data):
        expected = clone(model).fit(data.iloc[train]).transform(data.iloc[test])
        assert_allclose(out[test], expected, atol=1e-12)
    assert_allclose(model.fit_transform(pl.from_pandas(data)), out, atol=1e-12)


def test_folds_must_be_a_partition():
    data = table()
    model = Residualizer("site", features=FEATURES, residuals="cross-fitted", cv=[(np.arange(30), np.arange(30, 50))])
    with pytest.raises(ValueError, match="leaves 40 rows out"):
        model.fit_transform(data)


@pytest.mark.slow
def test_residualizing_inside_folds_scores_at_chance_and_before_them_does_not():
    """Snoek et al. (2019): no signal, many metadata that hold the target; before the folds it is below chance."""
    rng = np.random.default_rng(4)
    inside, before = [], []
    for _ in range(8):
        y = rng.integers(0, 2, 120)
        columns = {f"m{j}": rng.normal(size=120) + y for j in range(6)} | {
            f"x{j}": rng.normal(size=120) for j in range(30)
        }
        data = pd.DataFrame(columns)
        model = Residualizer(" + ".join(f"m{j}" for j in range(6)))
        learner = LogisticRegression(max_iter=2000)
        inside.append(cross_val_score(make_pipeline(model, learner), data, y, cv=5, scoring="roc_auc").mean())
        before.append(cross_val_score(learner, model.fit_transform(data), y, cv=5, scoring="roc_auc").mean())
    # The standard error of a mean of eight AUCs of 120 rows is 0.02.
    assert abs(np.mean(inside) - 0.5) < 0.06
    assert np.mean(before) < 0.44


def test_any_regressor_removes_what_no_line_does():
    rng = np.random.default_rng(5)
    m = rng.uniform(-2, 2, 600)
    X = np.column_stack([m**2, np.sin(3 * m)]) * 3 + rng.normal(size=(600, 2))
    model = Residualizer(estimator=KNeighborsRegressor(20))
    residual = model.fit_transform(X, metadata=m)
    straight = Residualizer().fit_transform(X, metadata=m)

    def share(values):
        return KNeighborsRegressor(20).fit(m[:, None], values).score(m[:, None], values)

    assert share(residual) < 0.12
    assert share(straight) > 0.6
    assert np.all(model.r2_ > 0.6)
    new = model.transform(X[:5], metadata=m[:5])
    assert_allclose(model.inverse_transform(new, metadata=m[:5]), X[:5], atol=1e-12)


def test_least_squares_as_a_regressor_is_the_cross_fitted_residualizer():
    data = table(100)
    model = Residualizer("site + age", features=FEATURES, estimator=LinearRegression(), cv=4)
    linear = Residualizer("site + age", features=FEATURES, residuals="cross-fitted", cv=4)
    assert_allclose(model.fit_transform(data), linear.fit_transform(data), atol=1e-11)
    assert_allclose(model.transform(data), linear.transform(data), atol=1e-11)
    with pytest.warns(LeakageWarning, match="'site.*check whether the estimator fits"):  # which it doesn't, unscaled
        single = Residualizer("site + age", features=FEATURES, estimator=SVR()).fit(data)  # takes one target at a time
    assert single.transform(data).shape == (100, 2)


def test_preserved_effects_are_partialled_out_as_robinson_does():
    rng = np.random.default_rng(6)
    m = rng.uniform(-2, 2, 1500)
    p = np.sin(2 * m) + rng.normal(size=1500)
    x = 5 * np.cos(2 * m) + 1.5 * p + rng.normal(size=1500)
    metadata = np.column_stack([m, p])
    model = Residualizer("m0", preserve="m1", estimator=KNeighborsRegressor(30))
    residual = model.fit_transform(x[:, None], metadata=metadata)
    # Standard error 1/sqrt(1500) = 0.026; the regression that ignores m's bend is off by more.
    assert_allclose(model.preserved_coef_, 1.5, atol=0.1)
    slope = np.polyfit(p, residual[:, 0], 1)[0]
    assert_allclose(slope, 1.5, atol=0.15)


def test_what_does_not_go_together_is_told():
    data = table()
    cases = (
        ({"residuals": "loo", "scale": True}, "residuals='loo' doesn't work with"),
        ({"estimator": SVR(), "alpha": 1.0}, "don't work with estimator="),
        ({"residuals": "leave-one-out"}, "The 'residuals' parameter of Residualizer must be a str among"),
        ({"shrinkage": "bayes"}, "shrinkage"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            Residualizer("site", features=FEATURES, **options).fit(data)
    with pytest.raises(ValueError, match="no coefficients"):
        Residualizer("site", features=FEATURES, estimator=LinearRegression()).fit(data).tidy()
    data.loc[2, "u"] = np.nan
    with pytest.raises(ValueError, match=r"NaN \(row 2, feature 0\)"):
        Residualizer("site", features=FEATURES, estimator=LinearRegression()).fit(data)


def test_the_leakage_warning_says_what_a_forest_then_finds():
    """Hamdan et al. (2023): Gaussian features rounded to 0.5 and a target that they know nothing of."""
    rng = np.random.default_rng(7)
    target = rng.integers(0, 2, 400)
    smooth = rng.normal(size=(400, 4))
    rounded = np.round(2 * smooth) / 2

    def auc(X):
        forest = RandomForestClassifier(50, random_state=0)
        return roc_auc_score(target, cross_val_predict(forest, X, target, cv=3, method="predict_proba")[:, 1])

    with pytest.warns(
        LeakageWarning, match=r"'m0' from residuals .*: squared correlation 0\.\d+ in cross-validation, and 0\.0"
    ):
        leaking = Residualizer().fit_transform(rounded, metadata=target)
    assert auc(rounded) < 0.6
    assert auc(leaking) > 0.95
    # Control: no warning and nothing to find without the lattice.
    assert auc(Residualizer().fit_transform(smooth, metadata=target)) < 0.6


def test_repeated_rows_and_rounding_that_tells_nothing_do_not_warn():
    rng = np.random.default_rng(8)
    X, m = rng.normal(size=(200, 3)) + 1, rng.normal(size=200)
    again = np.repeat(np.arange(200), rng.integers(1, 4, 200))
    Residualizer().fit(X[again], metadata=m[again])
    Residualizer().fit(np.round(X, 2), metadata=rng.integers(0, 2, 200))


def test_many_columns_for_few_rows_and_rare_levels_are_warned_of():
    rng = np.random.default_rng(9)
    with pytest.warns(DesignWarning, match="35 design columns for 60 rows"):
        Residualizer().fit(rng.normal(size=(60, 2)), metadata=rng.normal(size=(60, 35)))
    data = table()
    data.loc[[1, 2], "site"] = "rare"
    with pytest.warns(RareLevelWarning, match="rare"):
        Residualizer("site", features=FEATURES).fit(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Residualizer("site", features=FEATURES).fit(table())


@pytest.mark.parametrize("alpha", [3.0, {"site": 3.0}])
def test_leave_one_out_with_a_penalty_and_gaps_equals_refitting(alpha):
    data = table()
    data.loc[[3, 9], "u"] = np.nan
    data["empty"] = np.nan
    model = Residualizer("site + age", preserve="group", alpha=alpha, features=[*FEATURES, "empty", "w"])
    with pytest.warns(DesignWarning, match="without any value are left unchanged: empty"):
        loo = clone(model).set_params(residuals="loo").fit_transform(data)
    for i in (0, 3, 31):
        with pytest.warns(DesignWarning, match="empty"):
            refitted = clone(model).fit(data.drop(index=i)).transform(data.iloc[[i]])[0]
        assert_allclose(loo[i], refitted, atol=1e-11)
    assert np.isnan(loo[3, 0]) and np.isnan(loo[:, 2]).all()


def test_weights_count_in_the_fits_of_the_other_folds():
    data, cv = table(), KFold(4, shuffle=True, random_state=1)
    weight = np.random.default_rng(3).exponential(size=len(data))
    model = Residualizer("age", features=FEATURES, residuals="cross-fitted", cv=cv)
    found = model.fit_transform(data, sample_weight=weight)
    age, X = data[["age"]].to_numpy(), data[FEATURES].to_numpy()
    for train, test in cv.split(X):
        line = LinearRegression().fit(age[train], X[train], sample_weight=weight[train])
        # the residual has the mean of the rows of its fit
        expected = X[test] - line.predict(age[test])
        assert_allclose(found[test], expected, atol=1e-9)
