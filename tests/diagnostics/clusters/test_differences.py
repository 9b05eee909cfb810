"""Differences between found clusters, tested on data that didn't find them."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans

import residmix as rm
from residmix.diagnostics.clusters.thinning import noise_stream, plausible, thinned, within_covariance
from residmix.errors import ResidmixWarning

KMEANS = KMeans(2, n_init=4, random_state=0)


def test_the_parts_are_independent_and_have_the_means_of_the_rows():
    rng = np.random.default_rng(0)
    covariance = np.array([[2.0, 0.8], [0.8, 1.0]])
    X = rng.multivariate_normal([3.0, -1.0], covariance, 200_000)
    for share in (0.3, 0.7):
        one, two = thinned(X, covariance, share, rng)
        assert_allclose(one.mean(axis=0), [3, -1], atol=0.02)
        assert_allclose(two.mean(axis=0), [3, -1], atol=0.02)
        assert np.abs(np.cov(one.T, two.T)[:2, 2:]).max() < 0.03
        assert_allclose(np.cov(one.T), covariance / share, rtol=0.03)
        assert_allclose(share * one + (1 - share) * two, X)


@pytest.mark.parametrize("covariance", ["total", "within"])
@pytest.mark.slow
def test_where_there_are_no_clusters_five_percent_are_found_and_the_naive_test_finds_most(covariance):
    rng = np.random.default_rng(0)
    honest, naive = [], []
    for seed in range(60 if covariance == "total" else 10):
        X = rng.normal(size=(60, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
        found = rm.cluster_differences(X, KMEANS, covariance=covariance, random_state=seed)
        honest.append(found["p_value"].min() * 2)
        labels = KMEANS.fit_predict(X)
        naive.append(stats.ttest_ind(X[labels == 0], X[labels == 1], equal_var=False).pvalue.min() * 2)
    assert np.mean(np.array(naive) < 0.05) > 0.9
    assert np.mean(np.array(honest) < 0.05) < 0.15


class Halves(BaseEstimator):
    """Rows above the mean of the first feature, and below it."""

    def fit_predict(self, X):
        return (X[:, 0] > X[:, 0].mean()).astype(int)


def test_p_values_of_few_rows_are_uniform_though_the_covariance_is_an_estimate():
    rng, p, control = np.random.default_rng(0), [], []
    for seed in range(250):
        X = rng.normal(size=(20, 1))
        p += rm.cluster_differences(X, Halves(), covariance="total", random_state=seed)["p_value"].tolist()
        estimate = np.cov(X.T)[None, None]  # as if it were known
        control += rm.cluster_differences(X, Halves(), covariance=estimate, random_state=seed)["p_value"].tolist()
    assert stats.kstest(p, "uniform").pvalue > 0.05
    assert stats.kstest(control, "uniform").pvalue < 0.01


def test_the_noise_has_covariances_that_rows_of_the_estimate_may_come_from():
    rng, degrees = np.random.default_rng(0), 30
    covariance = np.array([[2.0, 0.9], [0.9, 1.0]])
    drawn = np.array([plausible(covariance, degrees, rng) for _ in range(4000)])
    # an inverse Wishart matrix: its mean, and the law of what Wishart rows of it would have on a diagonal
    assert_allclose(drawn.mean(axis=0), covariance * degrees / (degrees - 3), rtol=0.03)
    one = degrees * covariance[1, 1] / drawn[:, 1, 1]
    assert stats.kstest(one, stats.chi2(degrees - 1).cdf).pvalue > 0.01
    assert_allclose(plausible(covariance, 2, rng), covariance)


@pytest.mark.parametrize("covariance", ["total", np.eye(2)], ids=["total", "known"])
def test_features_that_differ_are_found_and_the_others_keep_their_level(covariance):
    rng = np.random.default_rng(0)
    p = []
    for seed in range(40):
        X = rng.normal(size=(80, 2))
        X[:40, 0] += 5
        p.append(rm.cluster_differences(X, KMEANS, covariance=covariance, random_state=seed)["p_value"])
    p = np.array(p)
    if not isinstance(covariance, str):  # the covariance of all rows costs power
        assert (p[:, 0] < 0.01).all()
    assert stats.binomtest(int((p[:, 1] < 0.05).sum()), 40, 0.05).pvalue > 0.01


@pytest.mark.slow
def test_the_covariance_within_clusters_is_found_where_there_are_some():
    X = np.random.default_rng(0).normal(size=(200, 2))
    assert_allclose(within_covariance(X + np.repeat([[0], [7]], 100, axis=0), 0)[0], np.eye(2), atol=0.25)
    assert_allclose(within_covariance(X, 0)[0], np.cov(X.T), rtol=1e-4)


def test_without_metadata_it_is_welchs_test_of_the_second_part():
    X = np.random.default_rng(0).normal(size=(50, 3))
    found, labels = rm.cluster_differences(X, KMEANS, covariance=np.eye(3), random_state=7, return_labels=True)
    second = thinned(X, np.eye(3), 0.5, noise_stream(7))[1]
    welch = stats.ttest_ind(second[labels == 1], second[labels == 0], equal_var=False)
    assert_allclose(found["statistic"], welch.statistic, rtol=1e-10)
    assert_allclose(found["p_value"], welch.pvalue, rtol=1e-10)
    assert found["clusters"].tolist() == [(0, 1)] * 3


@pytest.mark.parametrize("unit", [1e-6, 1e6, np.array([1e-9, 1e5])], ids=["small", "large", "one of each"])
def test_differences_do_not_depend_on_the_units_of_features(unit):
    X = np.random.default_rng(0).normal(size=(160, 2)) @ [[1.0, 0.4], [0.0, 1.0]]
    X[:80, 0] += 4
    found, other = (rm.cluster_differences(x, 2, random_state=3) for x in (X, X * unit))
    assert found["p_value"][0] < 1e-6
    assert_allclose(other["p_value"], found["p_value"], rtol=1e-6)
    # which of two clusters comes first isn't claimed
    sign = np.sign(other["difference"][0] * found["difference"][0])
    assert_allclose(other["difference"], sign * found["difference"] * unit, rtol=1e-6)
    covariances = [within_covariance(x, 0) for x in (X, X * unit)]
    assert [K for _, K in covariances] == [2, 2]
    assert_allclose(covariances[1][0], covariances[0][0] * unit * np.reshape(unit, (-1, 1)), rtol=1e-6)


def test_data_simulated_with_the_same_seed_are_not_the_noise():
    X = np.random.default_rng(5).normal(size=(100, 2))
    first, second = thinned(X, np.eye(2), 0.5, noise_stream(5))
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.3
    assert np.ptp(thinned(X, np.eye(2), 0.5, np.random.default_rng(5))[1]) < 1e-12  # as it would be


def test_what_the_metadata_explain_is_no_difference():
    rng = np.random.default_rng(0)
    site, X = np.repeat(["a", "b"], 100), rng.normal(size=(200, 2))
    frame = pd.DataFrame({"x": X[:, 0] + 5 * (site == "a"), "y": X[:, 1], "site": site})
    blind = rm.cluster_differences(frame, KMEANS, features=["x", "y"], covariance=np.eye(2))
    assert blind["p_value"].min() < 1e-6
    p = [
        rm.cluster_differences(frame, KMEANS, formula="C(site)", covariance="total", random_state=seed)["p_value"][0]
        for seed in range(10)
    ]
    assert np.median(p) > 0.05
    apart = rm.cluster_differences(X + 5.0 * (site == "a")[:, None], KMEANS, metadata=site, covariance="total")
    assert len(apart) == 2


@pytest.mark.slow
def test_one_cluster_is_told_and_noise_left_out():
    X = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.warns(ResidmixWarning, match="one cluster was found"):
        assert rm.cluster_differences(X).empty

    class Halves:
        def fit_predict(self, X):
            return np.where(X[:, 0] > 1, -1, (X[:, 0] > 0).astype(int))

        def get_params(self, deep=False):
            return {}

    found, labels = rm.cluster_differences(X, Halves(), return_labels=True, covariance="total")
    assert (labels == -1).any()
    assert found["clusters"].tolist() == [(0, 1)] * 2
    with pytest.raises(TypeError, match="fit_predict"):
        rm.cluster_differences(X, "kmeans")
    with pytest.raises(ValueError, match="covariance must be"):
        rm.cluster_differences(X, 2, covariance="none")
