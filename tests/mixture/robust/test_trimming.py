"""Trimmed fits: the right share of rows, likelihoods that never fall, clusters found amid outliers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp, xlogy
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

import residmix as rm
from residmix.mixture.robust.trimming import kept_weights


def contaminated(n=500, share=0.1, seed=0):
    """Two clusters, and rows far out that sit together."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 2)) + np.array([[0.0, 0.0], [6.0, 0.0]])[labels]
    out = rng.permutation(n)[: int(share * n)]
    X[out] = rng.uniform(-40, 40, size=(len(out), 2)) + [0.0, 60.0]
    labels[out] = -1
    return X, labels


def test_all_but_the_share_is_kept_the_least_likely_go_and_equals_share_alike():
    density, weight = np.array([3.0, 1.0, 2.0, 1.0, 5.0]), np.array([1.0, 1.0, 2.0, 1.0, 5.0])
    kept, threshold = kept_weights(density, weight, 0.1)
    assert_allclose(kept, [1, 0.5, 2, 0.5, 5])
    assert threshold == 1.0
    kept, threshold = kept_weights(density, weight, 0.2)
    assert_allclose(kept, [1, 0, 2, 0, 5])
    assert threshold == 2.0
    assert_allclose(kept_weights(density, weight, 0.3)[0].sum(), 7.0)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical", "VEV"])
def test_the_trimmed_likelihood_never_falls_and_outliers_are_trimmed(kind):
    X, labels = contaminated()
    model = rm.GaussianMixture(2, covariance_type=kind, trim=0.1, random_state=0, reg_covar=0.0).fit(X)
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-11
    found, density = model.predict(X), model.score_samples(X)
    assert (found == -1).sum() == 50
    assert ((found == -1) == (labels == -1)).mean() > 0.99
    assert adjusted_rand_score(labels[labels >= 0], found[labels >= 0]) > 0.95
    assert_allclose(model.lower_bound_, np.sort(density)[50:].mean(), rtol=1e-9)
    assert ((density < model.trim_threshold_) == (found == -1)).all()
    # the control: without trimming the outliers take a component
    plain = rm.GaussianMixture(2, covariance_type=kind, random_state=0).fit(X)
    assert adjusted_rand_score(labels[labels >= 0], plain.predict(X)[labels >= 0]) < 0.5


def test_trimmed_rows_have_the_last_column_and_criteria_are_of_the_rows_kept():
    X, _ = contaminated()
    model = rm.GaussianMixture([1, 2, 3], trim=0.1, eigenvalue_ratio=20.0, random_state=0).fit(X)
    assert model.n_components_ == 2
    share = model.predict_proba(X)
    assert share.shape == (500, 3)
    assert_allclose(share.sum(axis=1), 1)
    assert_allclose(share[:, 2], model.predict(X) == -1)
    assert model.bic(X) == pytest.approx(min(model.selection_["bic"]), rel=1e-9)
    kept = model.score_samples(X)[model.predict(X) >= 0]
    assert model.bic(X) == pytest.approx(-2 * kept.sum() + model._n_parameters() * np.log(450))


def test_criteria_count_the_row_at_the_edge_in_part():
    # 333 rows less a tenth, by weights from 0 to 3: the edge goes through a row
    X, _ = contaminated(333)
    weight = np.random.default_rng(2).integers(0, 4, 333).astype(float)
    model = rm.GaussianMixture([1, 2, 3], trim=0.1, eigenvalue_ratio=20.0, random_state=0).fit(X, sample_weight=weight)
    joint = [
        np.log(w) + multivariate_normal(mean, cov).logpdf(X)
        for w, mean, cov in zip(model.weights_, model.means_, model.covariances_, strict=True)
    ]
    density = logsumexp(joint, axis=0)
    share, left, total = np.exp(joint - density), weight.copy(), 0.1 * weight.sum()
    for i in np.argsort(density):
        gone = min(left[i], total)
        left[i], total = left[i] - gone, total - gone
    p, best = model._n_parameters(), int(np.argmin(model.selection_["bic"]))
    bic = -2 * left @ density + p * np.log(0.9 * weight.sum())
    expected = {
        "bic": bic,
        "aic": -2 * left @ density + 2 * p,
        "icl": bic - 2 * left @ xlogy(share, share).sum(axis=0),
    }
    for name, value in expected.items():
        assert getattr(model, name)(X, sample_weight=weight) == pytest.approx(value, rel=1e-9)
        assert model.selection_[name][best] == pytest.approx(value, rel=1e-6)


def test_weights_count_rows_and_far_rows_leave_no_trace():
    X, _ = contaminated(200)
    weight = 1.0 + np.arange(200) % 2
    setting = {"trim": 0.1, "labels_init": None, "means_init": [[0.0, 0.0], [6.0, 0.0]], "tol": 1e-10}
    once = rm.GaussianMixture(2, **setting).fit(np.repeat(X, weight.astype(int), axis=0))
    model = rm.GaussianMixture(2, **setting).fit(X, sample_weight=weight)
    assert_allclose(np.sort(model.means_, axis=0), np.sort(once.means_, axis=0), atol=1e-4)
    moved = X.copy()
    moved[model.predict(X) == -1] *= 1e6
    again = rm.GaussianMixture(2, **setting).fit(moved, sample_weight=weight)
    assert_allclose(np.sort(again.means_, axis=0), np.sort(model.means_, axis=0), atol=1e-5)


@pytest.mark.filterwarnings("ignore::residmix.errors.LeakageWarning")
def test_trimming_around_a_regression_is_kept_in_files(tmp_path):
    X, labels = contaminated()
    site = np.random.default_rng(1).integers(0, 2, 500)
    for estimation in ("two-stage", "joint"):
        model = rm.ResidualMixture(2, formula="C(m0)", trim=0.1, estimation=estimation, random_state=0)
        model.fit(X, metadata=site)
        found = model.predict(X, metadata=site)
        assert (found == -1).sum() == 50
        assert ((found == -1) == (labels == -1)).mean() > 0.98
        rm.save(model, tmp_path / "model")
        again = rm.load(tmp_path / "model")
        assert (again.predict(X, metadata=site) == found).all()
    plain = rm.GaussianMixture(2, trim=0.1, random_state=0).fit(X)
    rm.save(plain, tmp_path / "plain")
    assert (rm.load(tmp_path / "plain").predict(X) == plain.predict(X)).all()


@pytest.mark.filterwarnings("ignore::residmix.errors.LeakageWarning")
def test_joint_coefficients_do_not_see_trimmed_rows():
    X, labels = contaminated()
    site = (np.random.default_rng(1).uniform(size=500) < 0.3 + 0.4 * (labels == -1)).astype(int)
    moved = X + 2.0 * site[:, None]
    setting = {"formula": "C(m0)", "estimation": "joint", "random_state": 0}
    model = rm.ResidualMixture(2, trim=0.1, **setting).fit(moved, metadata=site)
    assert_allclose(model.coef_, 2.0, atol=0.35)
    assert np.diff(model.lower_bounds_).min(initial=0) > -1e-10
    clean = labels >= 0
    assert adjusted_rand_score(labels[clean], model.predict(moved, metadata=site)[clean]) > 0.95
