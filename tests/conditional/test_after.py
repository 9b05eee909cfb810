"""After a fit given metadata: outliers, merging, standard errors."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import residmix as rm


def table(n=600, seed=0, gated=False):
    rng = np.random.default_rng(seed)
    age, site = rng.normal(50, 10, n), rng.integers(0, 2, n)
    share = 1 / (1 + np.exp(-(age - 50) / 10 - site)) if gated else np.full(n, 0.4)
    one = rng.random(n) < share
    X = np.where(one[:, None], rng.normal(size=(n, 2)), 1.3 * rng.normal(size=(n, 2)) + [3.5, 1.0])
    X = X + 0.1 * age[:, None] + site[:, None] * [1.0, -2.0]
    return pd.DataFrame({"x": X[:, 0], "y": X[:, 1], "age": age, "site": site.astype(str)})


def fitted(frame, **settings):
    settings = {"estimation": "joint", **settings}
    return rm.ResidualMixture(2, formula="age + C(site)", features=["x", "y"], random_state=0, **settings).fit(frame)


@pytest.mark.parametrize("settings", [{}, {"gating": "metadata"}, {"noise": True}, {"estimation": "two-stage"}])
@pytest.mark.slow
def test_p_values_of_rows_that_come_from_the_model_are_uniform(settings):
    model = fitted(table(gated="gating" in settings), **settings)
    metadata = table(8000, seed=1)[["age", "site"]]
    drawn = model.set_params(random_state=3).sample(metadata=metadata)[0]
    fresh = metadata.assign(x=drawn[:, 0], y=drawn[:, 1])
    assert stats.kstest(model.outlier_pvalues(fresh), "uniform").pvalue > 0.01
    # a row judged by another one's metadata is rarer
    wrong = fresh.assign(age=fresh["age"].to_numpy()[::-1])
    assert stats.kstest(model.outlier_pvalues(wrong), "uniform").pvalue < 1e-6


@pytest.mark.slow
def test_p_values_given_a_gate_are_those_of_the_mixture_at_each_row():
    frame = table(gated=True)
    model = fitted(frame, gating="metadata")
    few = frame.iloc[:8]
    one_by_one = [model.at(few.iloc[[i]]).outlier_pvalues(few.iloc[[i]][["x", "y"]])[0] for i in range(8)]
    assert_allclose(model.outlier_pvalues(few), one_by_one, rtol=0.1)


@pytest.mark.slow
def test_merged_clusters_are_predicted_given_metadata():
    frame = table()
    model = fitted(frame, covariance_type="VVV")
    merged = model.merge_components(frame, n_clusters=1)
    assert (merged.predict(frame) == 0).all()
    assert np.array_equal(merged.with_clusters(2).predict(frame), model.predict(frame))
    assert model.merge_components(n_clusters=2).entropy_["entropy"][1] > 0


def test_errors_of_one_component_are_those_of_least_squares():
    frame = table()
    model = rm.ResidualMixture(1, formula="age + C(site)", features=["x", "y"], estimation="joint", reg_covar=0.0)
    model.fit(frame)
    design = np.column_stack([frame["age"], frame["site"] == "1", np.ones(len(frame))])
    inverse = np.linalg.inv(design.T @ design)
    expected = np.sqrt(np.outer(np.diag(inverse), np.diag(model.covariances_[0])))
    two_stages = rm.ResidualMixture(1, formula="age + C(site)", features=["x", "y"], reg_covar=0.0).fit(frame)
    for errors in (model.standard_errors_, model.standard_errors(frame), two_stages.standard_errors_):
        assert_allclose(errors.coef, expected[:2], rtol=1e-6)
        assert_allclose(errors.intercept, expected[2], rtol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.slow
def test_errors_are_those_of_fits_to_new_draws(gated):
    frame = table(gated=gated)
    settings = {"gating": "metadata"} if gated else {}
    model = fitted(frame, tol=1e-7, **settings)
    errors = model.standard_errors(frame)
    found = rm.bootstrap(model, frame, 50, kind="parametric").standard_errors
    names = ["coef", "means", "covariances", "intercept"] + (["gate_coef", "gate_intercept"] if gated else ["weights"])
    ratio = np.concatenate([(errors[name] / found[name]).ravel() for name in names])
    assert abs(np.exp(np.log(ratio).mean()) - 1) < 0.1
    assert np.abs(ratio - 1).max() < 0.45  # those of 50 fits are themselves known to 10 %


@pytest.mark.slow
def test_errors_with_a_gate_need_rows():
    model = fitted(table(gated=True), gating="metadata")
    with pytest.raises(AttributeError, match="weights depend on metadata; call standard_errors"):
        model.standard_errors_  # noqa: B018


@pytest.mark.slow
def test_effects_by_component_are_judged_at_each_row():
    rng = np.random.default_rng(0)
    frame = table()
    model = fitted(frame.assign(age=frame["age"].round(-1) + 0.25), effects="by-component")
    metadata = table(2000, seed=1)[["age", "site"]].assign(age=lambda rows: rows["age"].round(-1) + 0.25)
    drawn = model.set_params(random_state=3).sample(metadata=metadata)[0]
    assert stats.kstest(model.outlier_pvalues(metadata.assign(x=drawn[:, 0], y=drawn[:, 1])), "uniform").pvalue > 0.01
    few = metadata.assign(x=drawn[:, 0], y=drawn[:, 1]).iloc[rng.permutation(2000)[:6]]
    one_by_one = [model.at(few.iloc[[i]]).outlier_pvalues(few.iloc[[i]][["x", "y"]])[0] for i in range(6)]
    assert_allclose(model.outlier_pvalues(few), one_by_one, rtol=0.1)
    with pytest.raises(ValueError, match="use residmix"):
        model.standard_errors(frame)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a decision tree predicts")  # which it does if clusters follow the age
def test_errors_of_a_gate_between_clusters_far_apart_are_those_of_logistic_regression():
    from statsmodels.api import Logit

    rng = np.random.default_rng(0)
    age = rng.gamma(2.0, 10.0, 4000)
    one = rng.random(4000) < 1 / (1 + np.exp(-(age - 50) / 10))
    frame = pd.DataFrame({"x": rng.normal(size=4000) + 60 * one, "age": age})
    model = rm.ResidualMixture(
        2, formula="age", features=["x"], estimation="joint", gating="metadata", random_state=0, tol=1e-10
    ).fit(frame)
    errors = model.standard_errors(frame)
    known = Logit(one.astype(float), np.column_stack([np.ones(4000), age])).fit(disp=0)
    # log-odds of two components are twice what is about their mean
    assert_allclose(2 * errors.gate_intercept, np.full(2, known.bse[0]), rtol=0.03)
    assert_allclose(2 * errors.gate_coef, np.full((2, 1), known.bse[1]), rtol=0.03)
