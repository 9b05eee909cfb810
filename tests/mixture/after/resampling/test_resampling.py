"""Bootstraps of mixtures, with metadata and without, and the test for the number of components."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import residmix as rm
from residmix.errors import ResidmixWarning


def clouds(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n // 3, 2)), 1.5 * rng.normal(size=(n - n // 3, 2)) + [4.0, 1.0]])


@pytest.mark.parametrize("kind", ["nonparametric", "parametric", "weighted"])
def test_every_bootstrap_agrees_with_the_information_matrix(kind):
    X = clouds()
    model = rm.GaussianMixture(2, random_state=0).fit(X)
    found = rm.bootstrap(model, X, 60, kind=kind)
    expected = model.standard_errors(X) if kind != "parametric" else model.standard_errors_
    for name in ("weights", "means", "covariances"):
        ratio = expected[name] / found.standard_errors[name]
        assert abs(np.exp(np.log(ratio).mean()) - 1) < 0.2  # a deviation of 60 fits is known to 9 %
        assert (found.lower[name] < found.estimates[name]).all()
        assert (found.upper[name] > found.estimates[name]).all()
    assert found.n_failed == 0
    again = rm.bootstrap(model, X, 3, kind=kind)
    assert np.array_equal(again.replicates.means, rm.bootstrap(model, X, 3, kind=kind).replicates.means)


@pytest.mark.parametrize("kind", ["nonparametric", "weighted"])
def test_weights_count_as_repeated_rows_and_are_asked_for(kind):
    # of one normal component the errors are s / sqrt(n), n the sum of the weights
    X = np.random.default_rng(0).normal(size=(200, 1))
    weight = np.arange(200) % 5.0
    model = rm.GaussianMixture(1, reg_covar=0.0).fit(X, sample_weight=weight)
    repeated = np.repeat(X, weight.astype(int), axis=0)[:, 0]
    found = rm.bootstrap(model, X, 400, sample_weight=weight, kind=kind)
    assert found.estimates.means[0, 0] == pytest.approx(repeated.mean())
    assert found.replicates.means.mean() == pytest.approx(repeated.mean(), abs=0.02)
    assert found.standard_errors.means[0, 0] == pytest.approx(repeated.std() / np.sqrt(400), rel=0.12)
    with pytest.warns(ResidmixWarning, match="Pass the rows of the fit, and its sample_weight"):
        rm.bootstrap(model, X, 2, kind=kind)
    with pytest.raises(ValueError, match="doesn't go with kind='parametric'"):
        rm.bootstrap(model, X, 2, sample_weight=weight, kind="parametric")


def test_labels_that_switch_are_no_error():
    X = clouds()
    model = rm.GaussianMixture(2, random_state=0).fit(X)
    model.means_, model.weights_ = model.means_[::-1], model.weights_[::-1]
    model.covariances_, model.precisions_cholesky_ = model.covariances_[::-1], model.precisions_cholesky_[::-1]
    found = rm.bootstrap(model, X, 4)
    assert np.abs(found.replicates.means - model.means_).max() < 1


@pytest.mark.slow
def test_a_fit_given_metadata_is_resampled_with_its_metadata():
    rng = np.random.default_rng(0)
    X, age = clouds(), rng.normal(50, 10, 300)
    frame = pd.DataFrame({"x": X[:, 0] + 0.1 * age, "y": X[:, 1] - 0.1 * age, "age": age}, index=range(300, 600))
    model = rm.ResidualMixture(2, formula="age", features=["x", "y"], estimation="joint", random_state=0).fit(frame)
    apart = rm.ResidualMixture(2, estimation="joint", random_state=0)
    apart.fit(frame[["x", "y"]].to_numpy(), metadata=age)
    errors = model.standard_errors_.coef
    for kind in ("nonparametric", "parametric"):
        found = rm.bootstrap(model, frame, 25, kind=kind)
        assert_allclose(found.standard_errors.coef, errors, rtol=0.6)
        other = rm.bootstrap(apart, frame[["x", "y"]].to_numpy(), 25, metadata=age, kind=kind)
        assert_allclose(other.standard_errors.coef, errors, rtol=0.6)
    table = found.tidy()
    assert set(table["parameter"]) == {"weights", "means", "covariances", "coef", "intercept"}
    assert (table["std_error"] > 0).all()


def test_the_ratio_test_finds_how_many_clusters_there_are():
    model = rm.GaussianMixture(covariance_type="EEE", random_state=0)
    X = np.random.default_rng(0).normal(size=(120, 1)) + np.repeat([[0.0], [6.0]], 60, axis=0)
    found = rm.bootstrap_lrt(model, X, n_resamples=19)
    assert found.n_components_ == 2
    assert found.table["p_value"][0] == 0.05
    assert found.table["n_resamples"][1] < 19  # it stops when p can't fall below the level
    assert "1 vs 2" in str(found)


@pytest.mark.slow
def test_the_ratio_test_keeps_its_level_where_there_is_one_cluster():
    rng = np.random.default_rng(0)
    model = rm.GaussianMixture(covariance_type="spherical", random_state=0, tol=1e-4)
    found = [rm.bootstrap_lrt(model, rng.normal(size=(40, 1)), 1, n_resamples=19).n_components_ for _ in range(12)]
    assert found.count(1) >= 9


def test_settings_that_make_no_sense_are_refused():
    model = rm.GaussianMixture(2, random_state=0).fit(clouds())
    with pytest.raises(ValueError, match="'kind' parameter of bootstrap"):
        rm.bootstrap(model, clouds(), kind="jackknife")
    with pytest.raises(ValueError, match="one covariance_type"):
        rm.bootstrap_lrt(rm.GaussianMixture(covariance_type=["EEE", "VVV"]), clouds())
