"""Known measurement errors: the likelihood by scipy, its maximum, and missing values as infinite errors."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import residmix as rm

MEANS = np.array([[0.0, 0.0, 1.0], [5.0, 1.0, -1.0]])


def measured(n=160, seed=0):
    """Rows of two clusters, each measured with errors of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    truth = MEANS[labels] + rng.normal(size=(n, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 0.6]])
    roots = 0.45 * rng.normal(size=(n, 3, 3))
    E = roots @ roots.swapaxes(1, 2)
    return truth + np.einsum("nij,nj->ni", np.linalg.cholesky(E), rng.normal(size=(n, 3))), E, labels


def by_scipy(weights, means, covariances, X, E):
    rows = [
        [
            np.log(w) + multivariate_normal(m, S + e).logpdf(x)
            for w, m, S in zip(weights, means, covariances, strict=True)
        ]
        for x, e in zip(X, E, strict=True)
    ]
    return logsumexp(rows, axis=1).mean()


def test_the_fit_is_where_the_gradient_of_scipys_likelihood_is_0():
    X, E, _ = measured(120)
    model = rm.GaussianMixture(2, random_state=0, reg_covar=0.0, tol=1e-12).fit(X, error_covariance=E)
    best = by_scipy(model.weights_, model.means_, model.covariances_, X, E)
    assert model.lower_bound_ == pytest.approx(best, rel=1e-10)
    assert np.diff(model.lower_bounds_).min() > -1e-12
    roots = np.linalg.cholesky(model.covariances_)

    def value(x):
        share, means = np.exp([0.0, x[0]]), model.means_ + x[1:7].reshape(2, 3)
        lower = roots.copy()
        lower[:, *np.tril_indices(3)] += x[7:].reshape(2, 6)
        start = np.log(model.weights_)
        weights = np.exp(start) * share
        return by_scipy(weights / weights.sum(), means, lower @ lower.swapaxes(1, 2), X, E)

    h = 1e-4
    gradient = [(value(h * e) - value(-h * e)) / (2 * h) for e in np.eye(19)]
    assert np.abs(gradient).max() < 1e-5
    # the control: the plain fit is no such place
    plain = rm.GaussianMixture(2, random_state=0, reg_covar=0.0).fit(X)
    assert by_scipy(plain.weights_, plain.means_, plain.covariances_, X, E) < best - 0.01


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "VEV"])
def test_without_errors_it_is_the_plain_fit(kind):
    X, _, _ = measured()
    setting = {"covariance_type": kind, "random_state": 0, "tol": 1e-10}
    plain = rm.GaussianMixture(2, **setting).fit(X)
    for E in (np.zeros((160, 3)), np.zeros((160, 3, 3))):
        model = rm.GaussianMixture(2, **setting).fit(X, error_covariance=E)
        assert_allclose(model.means_, plain.means_, atol=1e-6)
        assert_allclose(model.covariances_, plain.covariances_, atol=1e-6)


def test_variances_are_diagonal_covariances_and_the_spread_is_that_of_what_was_measured():
    rng = np.random.default_rng(0)
    variances = rng.uniform(0, 3, size=(2000, 2))
    truth = rng.normal(size=(2000, 2)) * [1.0, 2.0]
    X = truth + np.sqrt(variances) * rng.normal(size=truth.shape)
    one = rm.GaussianMixture(1).fit(X, error_covariance=variances)
    two = rm.GaussianMixture(1).fit(X, error_covariance=variances[:, :, None] * np.eye(2))
    assert_allclose(one.covariances_, two.covariances_, rtol=1e-8)
    assert_allclose(np.diag(one.covariances_[0]), [1.0, 4.0], rtol=0.15)
    plain = np.diag(rm.GaussianMixture(1).fit(X).covariances_[0])
    assert (plain > np.array([1.0, 4.0]) + 1.2).all()


def test_missing_values_are_infinite_errors():
    X, _, _ = measured()
    gone = np.random.default_rng(1).uniform(size=X.shape) < 0.15
    gone[gone.all(axis=1)] = False
    holes = np.where(gone, np.nan, X)
    setting = {"missing": "em", "tol": 1e-10, "random_state": 0}
    exact = rm.GaussianMixture(2, **setting).fit(holes)
    same = rm.GaussianMixture(2, **setting).fit(holes, error_covariance=np.zeros(X.shape))
    assert_allclose(same.means_, exact.means_, atol=1e-6)
    assert_allclose(same.covariances_, exact.covariances_, atol=1e-6)
    means, weights = exact.means_, exact.weights_
    precisions = np.linalg.inv(exact.covariances_)
    start = {"means_init": means, "weights_init": weights, "precisions_init": precisions, "tol": 1e-10}
    wide = rm.GaussianMixture(2, **start).fit(X, error_covariance=np.where(gone, 1e10, 0.0))
    assert_allclose(wide.means_, means, atol=1e-4)
    assert_allclose(wide.covariances_, exact.covariances_, atol=1e-4)


def test_scores_and_labels_with_errors():
    X, E, _ = measured(120)
    model = rm.GaussianMixture(2, random_state=0).fit(X, error_covariance=E)
    density = model.score_samples(X, error_covariance=E)
    assert density.mean() == pytest.approx(by_scipy(model.weights_, model.means_, model.covariances_, X, E))
    assert density.mean() > model.score_samples(X).mean()
    share = model.predict_proba(X, error_covariance=E)
    assert (share.argmax(axis=1) == model.predict(X, error_covariance=E)).all()
    # far worse measured, a row belongs to any cluster
    assert np.ptp(model.predict_proba(X[:1], error_covariance=np.full((1, 3), 1e9)) - model.weights_) < 1e-3


def test_joint_estimation_knows_of_errors():
    X, E, _ = measured(300)
    site = np.random.default_rng(3).integers(0, 2, 300)
    moved = X + site[:, None] * np.array([1.0, -1.0, 0.5])
    setting = {"formula": "C(m0)", "estimation": "joint", "random_state": 0, "reg_covar": 0.0, "tol": 1e-8}
    model = rm.ResidualMixture(2, **setting).fit(moved, metadata=site, error_covariance=E)
    assert np.diff(model.lower_bounds_).min() > -1e-11
    assert_allclose(model.coef_, [[1.0, -1.0, 0.5]], atol=0.5)
    plain = rm.ResidualMixture(2, **setting).fit(moved, metadata=site)
    trace = [np.trace(one.covariances_, axis1=1, axis2=2).sum() for one in (model, plain)]
    assert trace[0] < 0.75 * trace[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((160, 2)), r"must have shape \(160, 3\) \(variances\) or \(160, 3, 3\)"),
        (-np.ones((160, 3)), "must not have negative variances"),
        (np.full((160, 3), np.inf), "must be finite"),
        (np.ones((160, 3, 3)) - 2 * np.eye(3), "must not have negative variances"),
        (np.ones((160, 3, 3)) * 2 - np.eye(3), "negative eigenvalues"),
    ],
)
def test_wrong_errors_are_one_clear_error(values, message):
    with pytest.raises(ValueError, match=message):
        rm.GaussianMixture(2).fit(measured()[0], error_covariance=values)
